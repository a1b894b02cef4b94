"""A client on its own machine: requests and answers, the state it keeps, and its resident worker.

A node's operator starts the worker once; model and data stay loaded from round to round. The process that talks to the
server forwards the encoded download through a local socket and sends back the encoded upload; it needs neither.
"""
