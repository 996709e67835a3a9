import sys

from plots import pool

if sys.argv[0] == "-m":  # a study is being started: Ctrl-C is one line from now on, before torch is imported
    pool.stop_in_one_line("plots")
