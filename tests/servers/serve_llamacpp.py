"""Serves a GGUF model with llama.cpp's own server, which xllamacpp carries: MODEL NAME PORT."""

import signal
import sys

import xllamacpp

model, name, port = sys.argv[1:]
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before its threads begin, which inherit it
params = xllamacpp.CommonParams()
params.model.path = model
params.model_alias = {name}
params.port = int(port)
params.n_ctx = 2048
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = (
    1  # threads that wait for each other are slower on a busy machine
)
params.endpoint_metrics = True
server = xllamacpp.Server(params)
signal.sigwait([signal.SIGTERM])
