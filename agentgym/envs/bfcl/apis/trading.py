"""A trader's account: orders, a watch list, and money that comes and goes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json, as_key, by_number

NOW = datetime(2024, 9, 1, 10, 30)
DAY = 24 * 60 * 60  # seconds
SYMBOLS = {
    "Apple": "AAPL",
    "Google": "GOOG",
    "Tesla": "TSLA",
    "Microsoft": "MSFT",
    "Nvidia": "NVDA",
    "Zeta Corp": "ZETA",
    "Alpha Tech": "ALPH",
    "Omega Industries": "OMEG",
    "Quasar Ltd.": "QUAS",
    "Neptune Systems": "NEPT",
    "Synex Solutions": "SYNX",
    "Amazon": "AMZN",
    "Gorilla": "GORI",
}
SECTORS = {"Technology": ["AAPL", "GOOG", "MSFT", "NVDA"], "Automobile": ["TSLA", "F", "GM"]}


class TradingBot(Api):
    """``orders``: by number; a task's own may hold other things beside."""

    orders: dict[str, Any]
    account_info: Json
    authenticated: bool
    market_status: str
    order_counter: int
    stocks: dict[str, Json]
    watch_list: list[str]
    transaction_history: list[Json]

    @classmethod
    def public(cls, fields: Json) -> Json:
        return super().public({**fields, "orders": {as_key(name): order for name, order in fields["orders"].items()}})

    def get_current_time(self) -> Json:
        return {"current_time": NOW.strftime("%I:%M %p")}

    def get_symbol_by_name(self, name: str) -> Json:
        return {"symbol": SYMBOLS.get(name, "Stock not found")}

    def get_stock_info(self, symbol: str) -> Json:
        return self.stocks.get(symbol, {"error": f"Stock with symbol '{symbol}' not found."})

    def get_available_stocks(self, sector: str) -> Json:
        return {"stock_list": SECTORS.get(sector, [])}

    def filter_stocks_by_price(self, stocks: list[str], min_price: float, max_price: float) -> Json:
        prices = {stock: self.stocks.get(stock, {}).get("price", 0) for stock in stocks}
        return {"filtered_stocks": [stock for stock in stocks if min_price <= prices[stock] <= max_price]}

    def notify_price_change(self, stocks: list[str], threshold: float) -> Json:
        changed = [stock for stock in stocks if stock in self.stocks and abs(self.stocks[stock]["percent_change"]) >= threshold]
        if not changed:
            return {"notification": "No significant price changes in the selected stocks."}
        return {"notification": f"Stocks {', '.join(changed)} have significant price changes."}

    def trading_login(self, username: str, password: str) -> Json:
        if self.authenticated:
            return {"status": "Already logged in"}
        self.authenticated = True
        return {"status": "Logged in successfully"}

    def trading_logout(self) -> Json:
        if not self.authenticated:
            return {"status": "No user is currently logged in"}
        self.authenticated = False
        return {"status": "Logged out successfully"}

    def trading_get_login_status(self) -> Json:
        return {"status": bool(self.authenticated)}

    def get_account_info(self) -> Json:
        return self.account_info if self.authenticated else _refused("view account information")

    def place_order(self, order_type: str, symbol: str, price: float, amount: int) -> Json:
        if not self.authenticated:
            return _refused("place an order")
        if symbol not in self.stocks:
            return {"error": f"Invalid stock symbol: {symbol}"}
        if price <= 0 or amount <= 0:
            return {"error": "Price and amount must be positive values."}
        cost = float(price) * int(amount)
        if order_type.lower() == "buy" and cost > self.account_info["balance"]:
            available = f"${cost:.2f} but only ${self.account_info['balance']:.2f} available."
            return {"error": f"Insufficient funds: required {available}"}
        price, number = float(price), self.order_counter
        about = {"order_type": order_type, "symbol": symbol, "price": price, "amount": amount}
        self.orders[str(number)] = {"id": number, **about, "status": "Open"}
        self.order_counter += 1
        return {"order_id": number, "order_type": order_type, "status": "Pending", "price": price, "amount": amount}

    def get_order_details(self, order_id: int) -> Json:
        order: Json | None = by_number(self.orders, order_id)
        if order is None:
            known = [as_key(name) for name in self.orders]
            return {"error": f"Order with ID {order_id} not found.Here is the list of orders_id: {known}"}
        return order

    def cancel_order(self, order_id: int) -> Json:
        order = by_number(self.orders, order_id)
        if order is None:
            return {"error": f"Order with ID {order_id} not found."}
        if order["status"] == "Completed":
            return {"error": f"Can't cancel order {order_id}. Order is already completed."}
        order["status"] = "Cancelled"
        return {"order_id": order_id, "status": "Cancelled"}

    def get_order_history(self) -> Json | list[Json]:
        if not self.authenticated:
            return [_refused("view order history")]
        return {"history": [as_key(name) for name in self.orders]}

    def fund_account(self, amount: float) -> Json:
        if not self.authenticated:
            return _refused("fund the account")
        if amount <= 0:
            return {"error": "Funding amount must be positive."}
        self._move("deposit", amount)
        return {"status": "Account funded successfully", "new_balance": self.account_info["balance"]}

    def withdraw_funds(self, amount: float) -> Json:
        if not self.authenticated:
            return _refused("make a transaction")
        if self.market_status != "Open":
            return {"error": "Market is closed. Transactions are not allowed."}
        if amount <= 0:
            return {"error": "Transaction amount must be positive."}
        if amount > self.account_info["balance"]:
            return {"error": "Insufficient funds for withdrawal."}
        self._move("withdrawal", amount)
        return {"status": "Withdrawal successful", "new_balance": self.account_info["balance"]}

    def get_transaction_history(self, start_date: str | None = None, end_date: str | None = None) -> Json | list[Json]:
        if not self.authenticated:
            return [_refused("view transaction history")]
        start = datetime.strptime(start_date, "%Y-%m-%d") if start_date else datetime.min
        end = datetime.strptime(end_date, "%Y-%m-%d") if end_date else datetime.max
        return {
            "transaction_history": [
                transaction
                for transaction in self.transaction_history
                if start <= datetime.strptime(transaction["timestamp"], "%Y-%m-%d %H:%M:%S") <= end
            ]
        }

    def add_to_watchlist(self, stock: str) -> Json:
        if stock in self.stocks and stock not in self.watch_list:
            self.watch_list.append(stock)
        return {"watchlist": self.watch_list}

    def remove_stock_from_watchlist(self, symbol: str) -> Json:
        if not self.authenticated:
            return _refused("modify the watchlist")
        if symbol not in self.watch_list:
            return {"error": f"Stock {symbol} not found in watchlist."}
        self.watch_list.remove(symbol)
        return {"status": f"Stock {symbol} removed from watchlist successfully."}

    def get_watchlist(self) -> Json | list[str]:
        if not self.authenticated:
            return ["Error: User not authenticated. Please log in to view the watchlist."]
        return {"watchlist": self.watch_list}

    def _move(self, kind: str, amount: float) -> None:
        self.account_info["balance"] += amount if kind == "deposit" else -amount
        moment = NOW + timedelta(seconds=self._draw(0, DAY))
        self.transaction_history.append({"type": kind, "amount": amount, "timestamp": moment.strftime("%Y-%m-%d %H:%M:%S")})


def _refused(doing: str) -> Json:
    return {"error": f"User not authenticated. Please log in to {doing}."}
