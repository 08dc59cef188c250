"""Kernels that start at once: forked from one process that imported torch and the like before.

A notebook's own imports take 4 to 6 s of a core; `make test` starts 28 kernels, and the browser
tests 13 and more. Nothing of flowlib is imported ahead, and each kernel has its own process, folder
and environment, as always.
"""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

from jupyter_client.provisioning import local_provisioner

FOLDER = str(Path(__file__).parent)
AHEAD = ["torch._dynamo", "accelerate", "safetensors.torch", "tqdm.auto", "matplotlib.pyplot"]
AHEAD += ["sklearn.model_selection", "ipywidgets", "ipykernel.kernelapp", "IPython.core.completer"]
AHEAD += ["torchvision.utils", "anywidget"]
INLINE = "module://matplotlib_inline.backend_inline"


def fork_from_one_process():
    """From now on kernels are forked, where the system can."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.get_context("forkserver").set_forkserver_preload(AHEAD)
        local_provisioner.launch_kernel = Kernel


class Kernel:
    """A kernel's process, with what jupyter_client needs of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, command, env, cwd=None, **ignored):
        context = multiprocessing.get_context("forkserver")
        here, there = context.Pipe()
        arguments = command[command.index("-f") :], dict(env), cwd or ".", there
        self.process = context.Process(target=be_kernel, args=arguments)
        self.process.start()
        there.close()
        here.recv()  # from here on it leads a group of processes, which is how it is killed
        self.pipe = here
        self.pid = self.process.pid

    def poll(self):
        return self.process.exitcode

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()

    def terminate(self):
        self.process.terminate()


def be_kernel(arguments, env, folder, there):
    """What the forked process does."""
    import matplotlib
    from ipykernel import kernelapp

    os.setsid()
    there.send("ready")
    sys.path[:] = [path for path in sys.path if path != FOLDER]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    matplotlib.rcParams["backend"] = INLINE  # which matplotlib asks for when it is imported
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    threading.Thread(target=end_with, args=[there], daemon=True).start()
    kernelapp.launch_new_instance(argv=arguments)


def end_with(there):
    """End this kernel when the process that holds the other end of the pipe is no more."""
    there.poll(None)
    os._exit(1)
