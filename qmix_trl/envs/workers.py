"""Environments in processes."""

import signal
import threading
from multiprocessing import resource_tracker

import torch
from torchrl.envs import ParallelEnv

OF_THE_GROUP = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)  # signals that workers leave alone


class Workers(ParallelEnv):
    """Processes of environments that only this process ends.

    A terminal's Ctrl-C, and a scheduler's signal, reach every process of a group: the workers would
    be gone while a run that notes the signal still steps them.
    """

    def _start_workers(self) -> None:
        errors = []

        def start() -> None:
            # A process inherits a thread's mask, and has it before its first line of Python. The
            # tracker of semaphores, which ignores only the two others, would die of a hang-up; it
            # lets those two through when it starts.
            signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_GROUP)
            try:
                ParallelEnv._start_workers(self)
            except BaseException as error:  # raised below
                errors.append(error)

        # This thread stays open to signals: workers may take long to start.
        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        torch.set_num_threads(self.num_threads)  # it holds for a thread
