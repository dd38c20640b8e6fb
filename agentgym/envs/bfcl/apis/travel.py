"""A travel agency: flights, insurance, cards and a budget."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json

TODAY = date(2026, 11, 21)  # fixed, so that an episode repeats; the benchmark asks the clock
ADULT = 18  # years
INVOICED = ("travel_date", "travel_from", "travel_to", "travel_class", "travel_cost", "transaction_id")
CLASSES = {"economy": 1, "business": 2, "first": 5}
# Of one US dollar.
CURRENCIES = {"RMB": 7, "EUR": 0.8, "JPY": 110, "GBP": 0.7, "CAD": 1.3, "AUD": 1.4, "INR": 70, "RUB": 60, "BRL": 3.8, "MXN": 20}
AIRPORTS = {
    "Rivermist": "RMS",
    "Stonebrook": "SBK",
    "Maplecrest": "MPC",
    "Silverpine": "SVP",
    "Shadowridge": "SHD",
    "London": "LHR",
    "Paris": "CDG",
    "Sunset Valley": "SSV",
    "Oakendale": "OKD",
    "Willowbend": "WLB",
    "Crescent Hollow": "CRH",
    "Autumnville": "ATV",
    "Pinehaven": "PHV",
    "Greenfield": "GFD",
    "San Francisco": "SFO",
    "Los Angeles": "LAX",
    "New York": "JFK",
    "Chicago": "ORD",
    "Boston": "BOS",
    "Beijing": "PEK",
    "Hong Kong": "HKG",
    "Rome": "CIA",
    "Tokyo": "HND",
}


class TravelAPI(Api):
    credit_card_list: dict[str, Json]
    booking_record: dict[str, Json]
    access_token: str | None
    token_type: str | None
    token_expires_in: int | None
    token_scope: str | None
    user_first_name: str | None
    user_last_name: str | None
    budget_limit: float | None

    def authenticate_travel(
        self, client_id: str, client_secret: str, refresh_token: str, grant_type: str, user_first_name: str, user_last_name: str
    ) -> Json:
        self.token_expires_in, self.token_type, self.token_scope = 2, "Bearer", grant_type
        self.access_token = str(self._draw(100000, 999999))
        self.user_first_name, self.user_last_name = user_first_name, user_last_name
        return {"expires_in": 2, "access_token": self.access_token, "token_type": "Bearer", "scope": grant_type}

    def travel_get_login_status(self) -> Json:
        return {"status": bool(self.token_expires_in)}

    def get_budget_fiscal_year(self, lastModifiedAfter: str | None = None, includeRemoved: str | None = None) -> Json:  # noqa: N803
        return {"budget_fiscal_year": "2018"}

    def register_credit_card(
        self, access_token: str, card_number: str, expiration_date: str, cardholder_name: str, card_verification_number: int
    ) -> Json:
        if self.token_expires_in is None:
            return {"error": "Token not initialized"}
        if refusal := self._refusal(access_token):
            return refusal
        if card_number in self.credit_card_list:
            return {"error": "Card already registered"}
        card_id = str(self._draw(100000000000, 999999999999))
        self.credit_card_list[card_id] = {
            "card_number": card_number,
            "expiration_date": expiration_date,
            "cardholder_name": cardholder_name,
            "card_verification_number": card_verification_number,
            "balance": self._draw(10000, 99999),
        }
        return {"card_id": card_id}

    def get_all_credit_cards(self) -> Json:
        return {"credit_card_list": self.credit_card_list}

    def get_credit_card_balance(self, access_token: str, card_id: str) -> Json:
        if refusal := self._refusal(access_token):
            return refusal
        if card_id not in self.credit_card_list:
            return {"error": f"Card not registered. Here are a list of card_id's: {list(self.credit_card_list)}"}
        return {"card_balance": self.credit_card_list[card_id]["balance"]}

    def list_all_airports(self) -> list[str]:
        airports: list[str] = self._tables["TravelAPI_airports"]
        return airports

    def get_nearest_airport_by_city(self, location: str) -> Json:
        return {"nearest_airport": AIRPORTS.get(location, "Unknown")}

    def get_flight_cost(self, travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> Json:
        return {"travel_cost_list": [self._cost(travel_from, travel_to, travel_date, travel_class)]}

    def book_flight(
        self, access_token: str, card_id: str, travel_date: str, travel_from: str, travel_to: str, travel_class: str
    ) -> Json:
        why = self._why_not(access_token, card_id, travel_date, travel_from, travel_to, travel_class)
        if why is not None:
            return {"booking_status": False, "error": why}
        card, cost = self.credit_card_list[card_id], self._cost(travel_from, travel_to, travel_date, travel_class)
        card["balance"] -= cost
        booking_id, transaction_id = str(self._draw(1000000, 9999999)), str(self._draw(10000000, 99999999))
        self.booking_record[booking_id] = {
            "card_id": card_id,
            "travel_date": travel_date,
            "travel_from": travel_from,
            "travel_to": travel_to,
            "travel_class": travel_class,
            "travel_cost": cost,
            "transaction_id": transaction_id,
        }
        return {"booking_id": booking_id, "transaction_id": transaction_id, "booking_status": True, "booking_history": {}}

    def cancel_booking(self, access_token: str, booking_id: str) -> Json:
        if refusal := self._refusal(access_token) or self._no_booking(booking_id):
            return {"cancel_status": False, **refusal}
        booking = self.booking_record[booking_id]
        self.credit_card_list[booking["card_id"]]["balance"] += booking["travel_cost"]
        del self.booking_record[booking_id]
        return {"cancel_status": True}

    def purchase_insurance(
        self, access_token: str, insurance_type: str, booking_id: str, insurance_cost: float, card_id: str
    ) -> Json:
        refusal = self._refusal(access_token)
        if refusal is None and self.budget_limit is not None and self.budget_limit < insurance_cost:
            refusal = {"error": "Exceeded budget limit"}
        refusal = refusal or self._no_booking(booking_id)
        if refusal is None and card_id not in self.credit_card_list:
            refusal = {"error": "Credit card not registered"}
        if refusal is not None:
            return {"insurance_status": False, **refusal}
        self.credit_card_list[card_id]["balance"] -= insurance_cost
        return {"insurance_id": str(self._draw(100000000, 999999999)), "insurance_status": True}

    def retrieve_invoice(self, access_token: str, booking_id: str | None = None, insurance_id: str | None = None) -> Json:
        if refusal := self._refusal(access_token) or self._no_booking(booking_id):
            return refusal
        booking = self.booking_record[str(booking_id)]
        return {"invoice": {"booking_id": booking_id, **{name: booking[name] for name in INVOICED}}}

    def get_booking_history(self, access_token: str) -> Json:
        return self._refusal(access_token) or {"booking_history": self.booking_record}

    def set_budget_limit(self, access_token: str, budget_limit: float) -> Json:
        if refusal := self._refusal(access_token):
            return refusal
        self.budget_limit = float(budget_limit)
        return {"budget_limit": self.budget_limit}

    def compute_exchange_rate(self, base_currency: str, target_currency: str, value: float) -> Json:
        if base_currency == "USD" and target_currency in CURRENCIES:
            return {"exchanged_value": float(value * CURRENCIES[target_currency])}
        if target_currency == "USD" and base_currency in CURRENCIES:
            return {"exchanged_value": round(value / CURRENCIES[base_currency], 2)}
        raise ValueError("No available exchange rate for the given currencies.")

    def verify_traveler_information(self, first_name: str, last_name: str, date_of_birth: str, passport_number: str) -> Json:
        if (first_name, last_name) != (self.user_first_name, self.user_last_name):
            expected = f"Expected {self.user_first_name} {self.user_last_name}, got {first_name} {last_name}"
            return _unverified(f"Cannot book flight information for another user.{expected}")
        try:
            born = datetime.strptime(date_of_birth, "%Y-%m-%d")
        except ValueError:
            return _unverified("Invalid date of birth format. Please use YYYY-MM-DD.")
        age = TODAY.year - born.year - ((TODAY.month, TODAY.day) < (born.month, born.day))
        if age < ADULT:
            return _unverified("Traveler must be at least 18 years old.")
        if not passport_number.startswith("US"):
            return _unverified("Passport must be issued by the United States.")
        return {"verification_status": True}

    def contact_customer_support(self, booking_id: str, message: str) -> Json:
        if refusal := self._no_booking(booking_id):
            return refusal
        thanks = "Thank you for contacting customer support."
        return {"customer_support_message": f"{thanks} Your message has been received and we will get back to you shortly."}

    def _cost(self, travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> float:
        base = self._tables["TravelAPI_base_prices"].get(f"{travel_from}-{travel_to}")
        if base is None:
            raise ValueError("No available route for the given airports.")
        if travel_class not in CLASSES:
            raise ValueError("Invalid travel class. Options are: economy, business, first.")
        digits = sum(int(digit) for digit in travel_date if digit.isdigit())
        return float(base * CLASSES[travel_class] * (1 if digits % 2 else 2))

    def _why_not(self, access_token: str, card_id: str, travel_date: str, *flight: str) -> str | None:
        """Why a flight is not booked. ``flight``: from where, to where, and its class."""
        travel_from, travel_to, travel_class = flight
        if refusal := self._refusal(access_token):
            return str(refusal["error"])
        if card_id not in self.credit_card_list:
            return "Card not registered"
        balance = self.credit_card_list[card_id].get("balance")
        if balance is None:
            return "Balance not found"
        if travel_from not in self.list_all_airports():
            return f"Invalid departure airport code: {travel_from}"
        if travel_to not in self.list_all_airports():
            return f"Invalid destination airport code: {travel_to}"
        try:
            datetime.strptime(travel_date, "%Y-%m-%d")
        except ValueError:
            return "Invalid date format. Use YYYY-MM-DD."
        if travel_class not in CLASSES:
            return f"Invalid travel class. Must be one of {', '.join(CLASSES)}"
        try:
            cost = self._cost(travel_from, travel_to, travel_date, travel_class)
        except ValueError as error:
            return str(error)
        if balance < cost:
            return "Insufficient funds"
        return "Balance is less than budget limit" if self.budget_limit is not None and balance < self.budget_limit else None

    def _refusal(self, access_token: str) -> Json | None:
        if self.token_expires_in == 0:
            return {"error": "Token expired"}
        return None if access_token == self.access_token else {"error": "Invalid access token"}

    def _no_booking(self, booking_id: Any) -> Json | None:
        return None if booking_id in self.booking_record else {"error": "Booking not found"}


def _unverified(why: str) -> Json:
    return {"verification_status": False, "verification_failure": why}
