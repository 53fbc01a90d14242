"""``tandem bench``: the paper's experiments with real processes on shaped links.

``registry`` names the contenders, ``links`` the networks; ``plan`` says what is to be measured and
``runner`` measures it, line by line into the ``journal``; ``results`` sums up, ``losses`` says
where Tandem loses, ``report`` and ``plots`` show it.
"""
