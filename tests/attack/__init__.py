"""Random attacks on the filters, in rounds that follow from a seed: bounded in the suite, for hours on a command line.

``python -m tests.attack --minutes 60``; ``--help`` says more.
"""
