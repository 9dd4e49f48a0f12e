"""The private parts of uvicorn that our connections build on; only this module imports them.

A minor release may change them, so pyproject.toml admits only releases that our connections were tried with.
"""

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = ["HIGH_WATER_LIMIT", "STATUS_LINE", "FlowControl", "HttpToolsProtocol", "RequestResponseCycle"]
