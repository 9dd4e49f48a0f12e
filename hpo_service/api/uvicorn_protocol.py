"""The parts of uvicorn that are none of its interface, for the connections that go on where its own leave off.

Nothing else imports them. The next minor release may have them otherwise, so that pyproject.toml admits none that our
connections have not been tried with.
"""

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

__all__ = ["HIGH_WATER_LIMIT", "STATUS_LINE", "FlowControl", "HttpToolsProtocol", "RequestResponseCycle"]
