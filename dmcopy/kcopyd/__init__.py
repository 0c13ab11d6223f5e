"""kcopyd in userspace: asynchronous copies of sector ranges within a fixed number of pages.

with Client(num_pages=64) as client:
    job = client.copy(IoRegion(disk, 0, 2048), [IoRegion(a, 0, 2048), IoRegion(b, 4096, 2048)])
    job.wait()
    print(job.read_err, job.write_err)
"""

from dmcopy.kcopyd.client import Client, ClientStatistics, PreparedCallback
from dmcopy.kcopyd.copyjob import MAX_REGIONS, CopyJob, Flag
from dmcopy.kcopyd.job import Failure
from dmcopy.kcopyd.listjob import ListJob
from dmcopy.kcopyd.moves import Move
from dmcopy.kcopyd.pages import PagePool
from dmcopy.kcopyd.throttle import Throttle

__all__ = [
    "MAX_REGIONS",
    "Client",
    "ClientStatistics",
    "CopyJob",
    "Failure",
    "Flag",
    "ListJob",
    "Move",
    "PagePool",
    "PreparedCallback",
    "Throttle",
]
