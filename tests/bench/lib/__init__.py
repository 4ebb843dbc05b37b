# SPDX-License-Identifier: GPL-2.0-or-later
"""What all benches share; tests/bench/README.md says what is where."""
