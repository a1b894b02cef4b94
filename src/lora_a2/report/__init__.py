"""One page of pictures and tables from run directories. No torch, but where models are asked for answers.

inputs     the runs below the folders that were given
blocks     what a page is made of: sections of figures and tables
charts     the kinds of pictures, as Vega-Lite
overview   sections over all runs: summary, the metric per round and per byte
detail     sections of one run
answers    what models that write answer, before and after
render     the page, from `page/`: template, style, script
"""
