"""The web application: one server for every route, over the same steps as the command line.

app.py            the application: what it holds while it runs, and its routes
access.py         who may ask: tokens, hosts and origins
entries.py        /api/entries: the review
training.py       /api/train: start, control and follow runs
inventory.py      /api/models, datasets, recordings, speakers; usage and health
tasks.py          evaluations, promotions, forecasts and a training worker as child processes
event_stream.py   server-sent events
openai_audio.py   /v1/audio/…, /v1/models: what OpenAI's clients speak
realtime.py       /v1/realtime: live sessions over WebSockets, configured as live_session.py reads
client_secrets.py keys that open live sessions for a while
wyoming.py        Wyoming's protocol, which Home Assistant speaks, on a port of its own
listening.py      the client of `voxloop listen`
openai_shapes.py  parts of their answers
problems.py       errors in OpenAI's shape
"""
