"""The report: one static page with every figure and table in ``results/``.

``folders`` reads what lies there, ``charts`` makes interactive curves of tables over the steps of
runs, ``summaries`` lists searches and runs with published settings, ``page`` puts it together.
"""
