#!/bin/sh
# Exit with 0 if a manager of this user answers within 10 seconds, else with 1. Starts no kernel.
exec timeout 10 cellblock ps --json | grep -q '"instance"'
