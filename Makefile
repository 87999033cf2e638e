# Every target works from a fresh clone. `make demo` and `make test` set up what they need by themselves.

CARGO ?= cargo
export CARGO
export CARGO_TERM_COLOR ?= auto
PREFIX ?= /usr/local

.PHONY: help setup build demo test kernels lint deny fuzz fuzz-guided bench neighbours torture torture-own endure soak screens doc \
	clean install uninstall deb

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## setup    install the packages that all targets need (as root; Debian, Ubuntu), or name what is missing
setup:
	@sh tests/setup.sh test

## build    the program, optimised: target/release/pagetide
build:
	@sh tests/setup.sh build
	$(CARGO) build --release --locked -p pagetide-cli

## demo     checkpoints of a real redis-server under load, and a value rolled back: ten seconds after the build
demo:
	@sh tests/setup.sh demo
	$(CARGO) build --release --locked -p pagetide-cli
	@bash tests/demo.sh target/release/pagetide

## install  the program, its manual pages and completions, to PREFIX (/usr/local), below DESTDIR if that is set
install:
	@[ -e target/release/pagetide ] || { echo "install: build it first: make build" >&2; exit 1; }
	@sh tests/install.sh target/release/pagetide "$(DESTDIR)$(PREFIX)"

## uninstall  what `make install` put there
uninstall:
	@sh tests/install.sh --remove "$(DESTDIR)$(PREFIX)"

## deb      a Debian package of the same: target/debian/*.deb (needs cargo-deb)
deb: build
	rm -rf target/package && sh tests/install.sh target/release/pagetide target/package
	$(CARGO) deb --no-build --locked -p pagetide-cli

## test     all tests, on three kernels: about twenty minutes on two cores
test: setup
	$(CARGO) test --locked --workspace --no-fail-fast
	$(CARGO) run --quiet --locked -p pagetide-kernels

## kernels  tests under this kernel and, in emulated machines, under Debian's 6.12 and 6.1; prints a table
kernels: setup
	$(CARGO) run --quiet --locked -p pagetide-kernels

## lint     formatting, clippy without a warning, documentation without a broken link; and what deny checks, if cargo-deny is there
lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
	@if command -v cargo-deny >/dev/null; then $(MAKE) --no-print-directory deny; \
	else echo "cargo-deny is not installed: licences and sources of dependencies are not checked"; fi

## deny     licences, sources and doubled versions of dependencies (needs cargo-deny)
deny:
	$(CARGO) deny --locked check bans licenses sources

## bench    figures against the bare kernel operations: the table of docs/BENCHMARKS.md
bench: setup
	$(CARGO) run --release --locked -p pagetide-bench

## neighbours  what redis, nginx, PostgreSQL, a JVM and node notice under load of checkpoints beside them: requests a
##          second and the slowest in a hundred, as a table; six minutes at most (needs nginx-light and a JDK, too)
neighbours: setup
	$(CARGO) build --release --locked -p pagetide-cli -p pagetide-bench
	target/release/pagetide-bench neighbours

## torture  random programs of memory management under checkpoints: SECONDS (1800) of them, from SEED, by
##          wp-async, and then the same ones by rehash
torture: setup
	$(CARGO) build --release --locked -p pagetide-cli -p pagetide-torture
	PAGETIDE_BIN=target/release/pagetide target/release/torture \
		--seed $(or $(SEED),1) --seconds $(or $(SECONDS),1800) --backend wp-async,rehash

## torture-own  the same for memory of one's own process (OwnMemory): SECONDS (600) of programs, from SEED
torture-own: setup
	$(CARGO) build --release --locked -p pagetide-torture
	target/release/torture --own --seed $(or $(SEED),1) --seconds $(or $(SECONDS),600)

## endure   the long form of the end-to-end tests: many more epochs and kills, and a minute of races; and `make fuzz`
endure: setup
	PAGETIDE_EPOCHS=$${PAGETIDE_EPOCHS:-1000} PAGETIDE_KILLS=$${PAGETIDE_KILLS:-1000} \
		PAGETIDE_SIGNALS=$${PAGETIDE_SIGNALS:-500} PAGETIDE_RACE_SECONDS=$${PAGETIDE_RACE_SECONDS:-60} \
		$(CARGO) test --release --locked -p pagetide-tests -- --nocapture
	$(MAKE) fuzz

## soak     a schedule that lives long: SNAPSHOTS (20000) of a Python program and of a redis-server each, kept to 200; a table
##          of own memory, files, bytes and stop. Twenty minutes at the least
soak: setup
	$(CARGO) build --release --locked -p pagetide-cli
	tests/soak.sh target/release/pagetide $(or $(SNAPSHOTS),20000)

## screens  what the commands look like in a terminal: docs/SCREENS.md (needs tmux and perl)
screens:
	$(CARGO) build --release --locked -p pagetide-cli
	tests/screens.sh target/release/pagetide >docs/SCREENS.md

## fuzz     what stores and hostile processes can say, changed at random: SECONDS (10) for each kind of text, a minute in all
fuzz: setup
	PAGETIDE_FUZZ_SECONDS=$(or $(SECONDS),10) $(CARGO) test --release --locked -p pagetide-kernel -p pagetide-process --lib \
		-- hostile --nocapture
	PAGETIDE_FUZZ_SECONDS=$(or $(SECONDS),10) $(CARGO) test --release --locked -p pagetide --test hostile_store -- --nocapture

## fuzz-guided  the decoder and the chain, SECONDS (60) each, guided by coverage (needs a nightly toolchain and cargo-fuzz)
fuzz-guided:
	cd fuzz && $(CARGO) fuzz run decode -- -max_total_time=$(or $(SECONDS),60)
	cd fuzz && $(CARGO) fuzz run chain -- -max_total_time=$(or $(SECONDS),60)

doc:
	$(CARGO) doc --workspace --no-deps --open

clean:
	$(CARGO) clean
