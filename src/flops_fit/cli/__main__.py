"""python -m flops_fit.cli"""

from flops_fit.cli import main

main()
