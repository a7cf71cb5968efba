"""python -m sim"""

from sim.cli.app import main

main()
