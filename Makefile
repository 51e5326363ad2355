# Bridle's commands. `make` alone lists them.
#
# One profile (release) for the binary, the tests, clippy and the docs, so that RocksDB's C++ is compiled once.

PORT ?= 6379
HTTP_PORT ?= 9121
DATA ?= ./data
# Further flags of `bridle standalone` (or, for a cluster, `bridle node`), for example: make run ARGS="--durability interval"
ARGS ?=

# The second and third node of a cluster use the next ports after this one and those above.
CLUSTER_PORT ?= 7201
CLUSTER = PORT=$(PORT) HTTP_PORT=$(HTTP_PORT) CLUSTER_PORT=$(CLUSTER_PORT) DATA="$(DATA)/cluster" ARGS="$(ARGS)" deploy/cluster.sh
BRIDLE = $(or $(CARGO_TARGET_DIR),target)/release/bridle

# Approximate duration of `make soak`, seconds.
SOAK ?= 3600

CARGO ?= cargo

# The documentation is for developers of Bridle: it includes private items and links to them.
DOCFLAGS = -D warnings -A rustdoc::private-intra-doc-links

.PHONY: help run cluster cluster-status cluster-stop build test soak mutants check fix bench bench-cluster pages setup setup-test setup-bench

help:
	@echo "make run [PORT=6379] [HTTP_PORT=9121] [DATA=./data] [ARGS=...]"
	@echo "                                                build what is needed and start a server; a second one needs all three"
	@echo "make cluster [PORT=6379] [ARGS=...]             the same with a cluster of three nodes, on three ports"
	@echo "make cluster-status                             show its nodes and tables"
	@echo "make cluster-stop                               stop it; the data stays"
	@echo "make build                                      build the binary only (release)"
	@echo "make test                                       run every test, real clients included"
	@echo "make soak [SOAK=3600]                           test a cluster under faults for this many seconds"
	@echo "make mutants                                    break one safety rule at a time, and check that the tests notice"
	@echo "make check                                      formatting, lints, documentation; writes nothing in the tree"
	@echo "make fix                                        format, and apply the lints' suggestions"
	@echo "make bench                                      compare Bridle with redis-server at equal durability"
	@echo "make bench-cluster                              compare a cluster with etcd and a Redis with replicas"
	@echo "make pages                                      write the generated tables: proxy/COMMANDS.md, deploy/METRICS.md"

run: setup
	$(CARGO) run --release -p bridle -- standalone --port $(PORT) --http-port $(HTTP_PORT) --data "$(DATA)" $(ARGS)

build: setup
	$(CARGO) build --release -p bridle

cluster: build
	@$(CLUSTER) start $(BRIDLE)

cluster-status:
	@$(CLUSTER) status $(BRIDLE)

cluster-stop:
	@$(CLUSTER) stop $(BRIDLE)

# Everything is built before the first test runs, including the binary that the tests of `integration`
# start.
test: setup-test
	$(CARGO) test --release --workspace

# A second binary, which can break safety rules. The usual one is built first and last, so that the
# other one is in its place only briefly.
mutants: setup-test
	$(CARGO) build --release --workspace
	$(CARGO) build --release --workspace --features bridle/mutants
	cp "$${CARGO_TARGET_DIR:-target}/release/bridle" "$${CARGO_TARGET_DIR:-target}/release/bridle-mutants"
	$(CARGO) build --release --workspace
	$(CARGO) test --release -p integration --features mutants --test mutants -- --nocapture --test-threads 1

# Three fifths of the time are for three runs with linearizability checks (processes killed, network
# faults, clock jumps), most of the rest for kills with a full read, two or three seconds each. Fifty
# failovers take three more minutes.
soak: setup-test
	$(CARGO) build --release --workspace
	BRIDLE_LIN_SECONDS=$$(($(SOAK) / 5)) $(CARGO) test --release -p integration --test linearizable -- --nocapture --test-threads 1
	BRIDLE_KILLS=$$(($(SOAK) / 12)) $(CARGO) test --release -p integration --test no_lost_writes -- --nocapture
	BRIDLE_KILLS=50 $(CARGO) test --release -p integration --test failover -- --nocapture leader_kill

check: setup-test
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="$(DOCFLAGS)" $(CARGO) doc --release --no-deps --document-private-items --workspace

fix: setup-test
	$(CARGO) clippy --release --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

bench: setup-test
	$(CARGO) build --release -p bridle
	$(CARGO) bench -p integration --bench versus

bench-cluster: setup-bench
	$(CARGO) build --release -p bridle
	$(CARGO) bench -p integration --bench cluster

pages:
	$(CARGO) run -q -p commands --example commands_page -- proxy/COMMANDS.md
	BRIDLE_WRITE_PAGES=1 $(CARGO) test -q --release --workspace --bin bridle -- metrics_page

setup:
	@deploy/setup.sh build

setup-test:
	@deploy/setup.sh test

setup-bench:
	@deploy/setup.sh bench
