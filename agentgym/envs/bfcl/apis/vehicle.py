"""A car: its doors, engine, brakes, lights and climate, and the ways to where it may go."""

# ruff: noqa: N802, N803, N815  (the benchmark's own names, by which it is called and compared)

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentgym.envs.bfcl.apis.base import Api, Json

DOORS = 4
TANK = 50  # gallons
MILES_PER_GALLON = 20
PEDAL_FORCE = 1000.0  # newtons, fully pressed
HEALTHY = (30, 35)  # psi, of the mean
MILES = {
    ("83214", "74532"): 750.0,
    ("56108", "62947"): 320.0,
    ("71354", "83462"): 450.0,
    ("47329", "52013"): 290.0,
    ("69238", "51479"): 630.0,
    ("94016", "83214"): 980.0,
    ("94016", "94704"): 600.0,
    ("94704", "08540"): 2550.0,
    ("94016", "08540"): 1950.0,
    ("62947", "47329"): 1053.0,
    ("94016", "62947"): 780.0,
    ("74532", "94016"): 880.0,
}
ZIP_CODES = {
    "Rivermist": "83214",
    "Stonebrook": "74532",
    "Maplecrest": "56108",
    "Silverpine": "62947",
    "Shadowridge": "71354",
    "Sunset Valley": "83462",
    "Oakendale": "47329",
    "Willowbend": "52013",
    "Crescent Hollow": "69238",
    "Autumnville": "51479",
    "San Francisco": "94016",
}


class VehicleControlAPI(Api):
    fuelLevel: float
    batteryVoltage: float
    engine_state: str
    remainingUnlockedDoors: int
    doorStatus: dict[str, str]
    acTemperature: float
    fanSpeed: int
    acMode: str
    humidityLevel: float
    headLightStatus: str
    parkingBrakeStatus: str
    brakePedalStatus: str
    distanceToNextVehicle: float
    cruiseStatus: str
    destination: str
    frontLeftTirePressure: float
    frontRightTirePressure: float
    rearLeftTirePressure: float
    rearRightTirePressure: float
    _parkingBrakeForce: float
    _slopeAngle: float
    _brakePedalForce: float

    @classmethod
    def start(cls, tables: Mapping[str, Any], config: Json) -> Json:
        renamed = {"engineState": "engine_state", "parkingBrakeForce": "_parkingBrakeForce", "slopeAngle": "_slopeAngle"}
        renamed["brakePedalForce"] = "_brakePedalForce"
        fields = super().start(tables, {renamed.get(name, name): value for name, value in config.items()})
        locked = list(fields["doorStatus"].values()).count("locked")
        return {"_brakePedalForce": 0.0, **fields, "remainingUnlockedDoors": DOORS - locked}

    def startEngine(self, ignitionMode: str) -> Json:
        if ignitionMode == "STOP":
            self.engine_state = "stopped"
        if self.remainingUnlockedDoors > 0:
            unlocked = ", ".join(name for name, status in self.doorStatus.items() if status == "unlocked")
            return {"error": f"All doors must be locked before starting the engine. Here are the unlocked doors: {unlocked}"}
        if self.brakePedalStatus != "pressed":
            return {"error": "Brake pedal needs to be pressed when starting the engine."}
        if self._brakePedalForce != PEDAL_FORCE:
            return {"error": "Must press the brake fully before starting the engine."}
        if self.fuelLevel < 0:
            return {"error": "Fuel tank is empty."}
        if ignitionMode != "START":  # the engine was stopped all the same
            return {"error": "Invalid ignition mode."}
        self.engine_state = "running"
        return {"engineState": self.engine_state, "fuelLevel": self.fuelLevel, "batteryVoltage": self.batteryVoltage}

    def fillFuelTank(self, fuelAmount: float) -> Json:
        if fuelAmount < 0:
            return {"error": "Fuel amount cannot be negative."}
        if self.fuelLevel + fuelAmount > TANK:
            return {"error": "Cannot fill gas above the tank capacity."}
        self.fuelLevel += fuelAmount
        return {"fuelLevel": self.fuelLevel}

    def lockDoors(self, unlock: bool, door: list[str]) -> Json:
        wanted = "unlocked" if unlock else "locked"
        for name in door:
            if self.doorStatus[name] != wanted:
                self.doorStatus[name] = wanted
                self.remainingUnlockedDoors += 1 if unlock else -1
        return {"lockStatus": wanted, "remainingUnlockedDoors": self.remainingUnlockedDoors}

    def adjustClimateControl(
        self,
        temperature: float,
        unit: str = "celsius",
        fanSpeed: int = 50,
        mode: str = "auto",
    ) -> Json:
        if not 0 <= fanSpeed <= 100:
            return {"error": "Fan speed must be between 0 and 100."}
        self.acTemperature = (temperature - 32) * 5 / 9 if unit == "fahrenheit" else temperature
        self.fanSpeed, self.acMode = fanSpeed, mode
        return {"currentACTemperature": temperature, "climateMode": mode, "humidityLevel": self.humidityLevel}

    def get_outside_temperature_from_google(self) -> Json:
        return {"outsideTemperature": self._draw(-10.0, 40.0)}

    def get_outside_temperature_from_weather_com(self) -> Json:
        return {"error": 404}

    def setHeadlights(self, mode: str) -> Json:
        if mode not in ("on", "off", "auto"):
            return {"error": "Invalid headlight mode."}
        self.headLightStatus = "on" if mode == "on" else "off"
        return {"headlightStatus": self.headLightStatus}

    def displayCarStatus(self, option: str) -> Json:
        shown: dict[str, Json] = {
            "fuel": {"fuelLevel": self.fuelLevel},
            "battery": {"batteryVoltage": self.batteryVoltage},
            "doors": {"doorStatus": self.doorStatus},
            "climate": {
                "currentACTemperature": self.acTemperature,
                "fanSpeed": self.fanSpeed,
                "climateMode": self.acMode,
                "humidityLevel": self.humidityLevel,
            },
            "headlights": {"headlightStatus": self.headLightStatus},
            "parkingBrake": {
                "parkingBrakeStatus": self.parkingBrakeStatus,
                "parkingBrakeForce": self._parkingBrakeForce,
                "slopeAngle": self._slopeAngle,
            },
            "brakePedal": {"brakePedalStatus": self.brakePedalStatus, "brakePedalForce": self._brakePedalForce},
            "engine": {"engineState": self.engine_state},
        }
        return shown.get(option, {"error": "Invalid option"})

    def activateParkingBrake(self, mode: str) -> Json:
        if mode not in ("engage", "release"):
            return {"error": "Invalid mode"}
        engaged = mode == "engage"
        self.parkingBrakeStatus = "engaged" if engaged else "released"
        self._parkingBrakeForce, self._slopeAngle = 500.0 if engaged else 0.0, 10.0
        return {
            "parkingBrakeStatus": self.parkingBrakeStatus,
            "_parkingBrakeForce": self._parkingBrakeForce,
            "_slopeAngle": self._slopeAngle,
        }

    def pressBrakePedal(self, pedalPosition: float) -> Json:
        if not 0 <= pedalPosition <= 1:
            return {"error": "Pedal position must be between 0 and 1."}
        if pedalPosition == 0:
            return self.releaseBrakePedal()
        self.brakePedalStatus, self._brakePedalForce = "pressed", PEDAL_FORCE * pedalPosition
        return {"brakePedalStatus": "pressed", "brakePedalForce": self._brakePedalForce}

    def releaseBrakePedal(self) -> Json:
        self.brakePedalStatus, self._brakePedalForce = "released", 0.0
        return {"brakePedalStatus": "released", "brakePedalForce": 0.0}

    def setCruiseControl(self, speed: float, activate: bool, distanceToNextVehicle: float) -> Json:
        speed, distance = float(speed), float(distanceToNextVehicle)
        if self.engine_state == "stopped":
            return {"error": "Start the engine before activating the cruise control."}
        self.distanceToNextVehicle = distance
        if activate and (not 0 <= speed <= 120 or speed % 5):
            return {"error": "Invalid speed"}
        self.cruiseStatus = "active" if activate else "inactive"
        return {"cruiseStatus": self.cruiseStatus, "currentSpeed": speed, "distanceToNextVehicle": distance}

    def get_current_speed(self) -> Json:
        return {"currentSpeed": self._draw(0.0, 120.0)}

    def estimate_drive_feasibility_by_mileage(self, distance: float) -> Json:
        return {"canDrive": self.fuelLevel * MILES_PER_GALLON >= distance}

    def liter_to_gallon(self, liter: float) -> Json:
        return {"gallon": liter * 0.264172}

    def gallon_to_liter(self, gallon: float) -> Json:
        return {"liter": gallon * 3.78541}

    def estimate_distance(self, cityA: str, cityB: str) -> Json:
        miles = MILES.get((cityA, cityB), MILES.get((cityB, cityA)))
        return {"error": "distance not found in database."} if miles is None else {"distance": miles}

    def get_zipcode_based_on_city(self, city: str) -> Json:
        return {"zipcode": ZIP_CODES.get(city, "00000")}

    def set_navigation(self, destination: str) -> Json:
        self.destination = destination
        return {"status": f"Navigating to {destination}"}

    def check_tire_pressure(self) -> Json:
        pressures = {
            "frontLeftTirePressure": self.frontLeftTirePressure,
            "frontRightTirePressure": self.frontRightTirePressure,
            "rearLeftTirePressure": self.rearLeftTirePressure,
            "rearRightTirePressure": self.rearRightTirePressure,
        }
        mean = sum(pressures.values()) / len(pressures)
        return {**pressures, "healthy_tire_pressure": HEALTHY[0] <= mean <= HEALTHY[1], "car_info": {}}

    def find_nearest_tire_shop(self) -> Json:
        return {"shopLocation": "456 Oakwood Avenue, Rivermist, 83214"}

    def display_log(self, messages: list[str]) -> Json:
        return {"log": messages}
