# Copyright (c) The ConRec for MONAI contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.


from __future__ import annotations

import time

import torch.distributed as dist

__all__ = ["end_processes", "rank", "world_size"]


def rank() -> int:
    """Number of this process in the default process group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def end_processes() -> None:
    """Ends the default process group, where there is one, when all of its processes are done.

    With a pause: a thread of gloo drops the last collective, for which it may need Python's lock; the end of the group
    waits for that thread and holds the lock (seen with PyTorch 2.13: a process that hangs at its end).
    """
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        time.sleep(0.5)
        dist.destroy_process_group()
