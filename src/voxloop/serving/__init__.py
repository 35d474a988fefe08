"""The running recogniser: batches across clients, the model in use and its replacement, files heard in parts.

batches.py   which clips are decoded together, and whose turn it is
models.py    the model in use, and any other that a request names
files.py     a whole file: decoded, cut at pauses, heard part by part
"""
