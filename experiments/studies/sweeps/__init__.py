"""Sweeps that survive the night: an explicit list of runs, and Hydra's launchers to work it off.

``plan`` makes the list (quasi-random points of ``configs/optimizer/<search>.yaml`` times seeds) and
keeps it in the sweep's own folder. ``drive`` works it off in passes: each pass is one Hydra
multirun whose only swept value is the place of a run in that list (``launch``), so that Hydra's
own launchers, basic, joblib and submitit, start the jobs, and no sweeper of ours is needed to hand
them points. A job (``job``) starts ``scripts/train.py`` as a process of its own and waits for it: a
crash takes nothing else along, whatever the launcher.

What became of a run is read from its record and from a note that the job leaves (``state``), never
kept in memory: whoever is killed, the same command finds out where everything stands. A process
that lost its sweep, because the command was killed or started anew, sees that in ``session``, ends
what it trains in peace and starts nothing more. The record's lock keeps two processes from training
one run; who finds it taken waits.
"""
