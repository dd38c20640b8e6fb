"""The benchmark's stateful backends, each in one file."""

from __future__ import annotations

from agentgym.envs.bfcl.apis.base import Api
from agentgym.envs.bfcl.apis.files import GorillaFileSystem
from agentgym.envs.bfcl.apis.maths import MathAPI
from agentgym.envs.bfcl.apis.messages import MessageAPI
from agentgym.envs.bfcl.apis.posts import TwitterAPI
from agentgym.envs.bfcl.apis.tickets import TicketAPI
from agentgym.envs.bfcl.apis.trading import TradingBot
from agentgym.envs.bfcl.apis.travel import TravelAPI
from agentgym.envs.bfcl.apis.vehicle import VehicleControlAPI

# By class, the name of the file that describes its functions.
DOCUMENTS: dict[type[Api], str] = {
    GorillaFileSystem: "gorilla_file_system",
    MathAPI: "math_api",
    MessageAPI: "message_api",
    TwitterAPI: "posting_api",
    TicketAPI: "ticket_api",
    TradingBot: "trading_bot",
    TravelAPI: "travel_booking",
    VehicleControlAPI: "vehicle_control",
}
APIS: dict[str, type[Api]] = {api.__name__: api for api in DOCUMENTS}
