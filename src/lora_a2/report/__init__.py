"""One page of pictures and tables from run directories. No torch, but where models are asked for answers.

inputs     the runs below the folders that were given
blocks     what a page is made of: sections of figures and tables
axes       ticks and their labels: rounds, bytes, shares
charts     pictures as Vega-Lite: what all share, bars, histograms
curves     lines with bands: a colour says one thing, a dash another
heat       heat maps
groups     runs that differ in their seed alone, as one
overview   sections over all runs: the metric per round and per byte, seeds, summary
rounds     one run round by round
detail     the other sections of one run: clients, labels, matrices
answers    what models answer to test examples, where it is asked for; mistakes: what a classifier confuses
render     the page, from `page/`: template, style, script
"""
