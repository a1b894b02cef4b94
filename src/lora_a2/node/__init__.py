"""A client on a machine of its own: what it is asked, what it answers, what it keeps, and the worker that stays resident.

A node's operator starts the worker once; model and data stay loaded from round to round. Whoever speaks to the federation's
server passes the encoded download on through a local socket and sends back the encoded upload; it needs neither.
"""
