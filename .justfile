# Tasks by name: `just --list`. Each calls the script or command that CI calls as well.

# Everything that a change must pass.
ci:
    .ci/run

# The tests; with arguments, those of a name.
test *arguments:
    tests/run {{ arguments }}

# The fault matrix alone; with --long, a hundred refreshes at each point.
faults *arguments:
    tests/faults {{ arguments }}

# Licences, bans, duplicates and sources of what is depended on.
dependencies:
    .ci/dependencies

# The broker with simulated providers.
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# The map of the code, and the guides.
doc:
    cargo doc --locked --no-deps --document-private-items --open

format:
    cargo fmt
