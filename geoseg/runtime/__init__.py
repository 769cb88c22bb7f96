"""Everything that is the whole process's: threads, the width of products, memory, transfers.

What is changed here is put back when a block ends, so that a call from a notebook or another
program leaves its process as it was. Only a process that is geoseg's own, the command line or a
worker, changes more (`geoseg.runtime.allocator.own_process`).
"""
