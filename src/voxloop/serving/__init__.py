"""The running recogniser: batches across clients, the model in use and its replacement, files heard in parts.

batches.py   which clips are decoded together, and whose turn it is
models.py    the model in use, and any other that a request names
adapters.py  models of one base, each as its adapter alone
decoding.py  clients' files are decoded in children, which can be killed
files.py     a whole file: cut at pauses, heard part by part
"""
