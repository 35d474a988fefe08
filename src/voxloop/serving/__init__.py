"""The running recogniser: batches across clients, the model in use and its replacement, files and streams.

batches.py   which clips are decoded together, and whose turn it is
models.py    the model in use, and any other that a request names
streams.py   live speech: utterances found, heard again and again while they are spoken
live.py      what a live stream is asked for, and what it tells
agreement.py which words of a growing hypothesis are decided
incoming.py  audio as live clients send it, turned into 16 kHz mono
adapters.py  models of one base, each as its adapter alone
decoding.py  clients' files are decoded in children, which can be killed
files.py     a whole file: cut at pauses, heard part by part
"""
