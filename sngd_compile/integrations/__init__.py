"""Callbacks for trainers that people use; each file needs the extra of its name.

Nothing here is needed to train with them: a reconstructed network is a module like any other. A
callback adds what a trainer does not know of, ordinary checkpoints, averages and metrics.
"""
