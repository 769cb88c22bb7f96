"""Faults on purpose: is a run whole, or refused in one line and then finished by ``--resume``?

``python -m tools.faults`` kills runs, fills disks, starts pairs of runs in one folder, damages what
runs leave and bends models, and holds what comes out against runs that nobody disturbed.
"""
