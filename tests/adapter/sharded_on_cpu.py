"""The command line with FSDP on a CPU, which accelerate by itself leaves out there.

accelerate divides weights only where it takes the processes for GPU processes; torch can do it on a CPU too.
"""

import sys

from accelerate.state import AcceleratorState, DistributedType, PartialState

from pytest_muscle.adapter.__main__ import main

begin = PartialState.__init__


def begin_as_on_gpus(state, *arguments, **named):
    begin(state, *arguments, **named)
    if state.distributed_type is DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU


PartialState.__init__ = begin_as_on_gpus
status = main()
print(AcceleratorState().distributed_type)
sys.exit(status)
