"""The command line: `sramsim run llama2-70b-lpu-vs-h100`.

Read `main` first.
"""
