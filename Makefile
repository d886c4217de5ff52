# Thin: each target is a line or two, and says what it does in `make help`.
SHELL := /bin/bash
CARGO ?= cargo
APXS ?= apxs
DESTDIR ?=
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
export OFFLOAD_ARTIFACTS := $(TARGET)/release
CGIDIR ?= /usr/lib/offload
# offload-cgi is linked statically: it runs on any host, and as a CGI it starts in two thirds of the time.
STATIC := -C target-feature=+crt-static
# What building, testing and measuring need, by Debian's names.
PACKAGES := apache2-bin apache2-dev libclang-dev build-essential openssl curl wget aria2 wrk

.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

# A package that brings a service, such as nginx, does not start it: neither now nor at boot.
setup: ## Install the Debian packages that are missing (as root), or name them
	@missing=$$(for p in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	[ -z "$$missing" ] && exit 0; missing=$$(echo $$missing); \
	if [ "$$(id -u)" != 0 ]; then \
	    echo "These Debian packages are missing; as root: apt-get install $$missing" >&2; exit 1; fi; \
	echo "Installing $$missing"; \
	policy=/usr/sbin/policy-rc.d; \
	[ -e $$policy ] || { trap "rm -f $$policy" EXIT; install -m 755 <(printf '#!/bin/sh\nexit 101\n') $$policy; }; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null && \
	case " $$missing " in *" nginx-light "*) systemctl disable -q nginx 2>/dev/null || true;; esac && \
	case " $$missing " in *" varnish "*) systemctl disable -q varnish varnishncsa 2>/dev/null || true;; esac

build: setup ## Build the module, the offload host's program and the demo
	$(CARGO) build --release --workspace --exclude offload-cgi
	$(CARGO) rustc --release -p offload-cgi --bin offload-cgi -- $(STATIC)

# The module with a bug on demand, for the tests of what a bug may do. It is built beside the real one.
faulty: setup
	$(CARGO) build --release -p mod_offload --features fault-injection
	@mkdir -p $(TARGET)/faulty && cp $(TARGET)/release/libmod_offload.so $(TARGET)/faulty/mod_offload.so

demo: build ## Show it all on loopback: base, two offload hosts, 200 MB; Ctrl-C ends (ONCE=1: ends by itself)
	@ONCE=$(ONCE) $(TARGET)/release/demo

check: setup ## Format, lints and documentation, warnings refused
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy -p mod_offload --features fault-injection -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' $(CARGO) doc --workspace --no-deps --document-private-items

test: faulty build ## Everything: units, properties, black box on real httpd (event, worker, prefork)
	@$(MAKE) --no-print-directory setup PACKAGES=chromium
	$(CARGO) test --workspace --no-fail-fast

loom: ## The ledger's steps, in every order that threads may take them
	RUSTFLAGS='--cfg loom' $(CARGO) test --release --target-dir $(TARGET)/loom -p offload-core --lib ledger

soak-limits: build ## Limits while clients come and go, children are killed and httpd restarts (KILLS=200)
	@$(TARGET)/release/soak_limits

soak: soak-limits soak-store ## Both soaks

soak-store: ## The store while everything is killed: every byte compared, what is fetched twice counted (ROUNDS=1000)
	SOAK_ROUNDS=$(or $(ROUNDS),1000) $(CARGO) test --release -p offload-cgi --test cgi --test daemon soak -- --nocapture

# What cargo-fuzz would pass, as far as the stable compiler takes it: coverage for libFuzzer.
fuzz: export RUSTFLAGS := --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares
fuzz: ## What a client, a base or a damaged disk may send, by libFuzzer (SECONDS_EACH=60)
	$(CARGO) build --release --manifest-path offload-cgi/fuzz/Cargo.toml --target-dir $(TARGET)/fuzz --target $$(rustc -vV | sed -n 's/host: //p')
	@for target in head request range path metadata; do \
	    mkdir -p $(TARGET)/fuzz/corpus/$$target; \
	    $(TARGET)/fuzz/$$(rustc -vV | sed -n 's/host: //p')/release/$$target -max_total_time=$(or $(SECONDS_EACH),60) \
	        -print_final_stats=1 -artifact_prefix=$(TARGET)/fuzz/ $(TARGET)/fuzz/corpus/$$target offload-cgi/fuzz/corpus/$$target \
	        >$(TARGET)/fuzz/$$target.log 2>&1 || { tail -30 $(TARGET)/fuzz/$$target.log; exit 1; }; \
	    echo "$$target: nothing found; $$(grep units: $(TARGET)/fuzz/$$target.log)"; done

bench: bench-redirect bench-limits bench-store bench-throttle bench-daemon ## All benchmarks, each beside its peer

bench-redirect: build ## Redirects per second beside mod_alias's Redirect
	@$(TARGET)/release/bench_redirect

bench bench-limits: PACKAGES += valgrind libapache2-mod-qos libapache2-mod-evasive
bench-limits: build ## What the limits cost a request; requests per second beside mod_qos and mod_evasive
	@$(TARGET)/release/bench_limits

bench-store: build ## The offload host: hits beside a CGI in C, fills beside curl, a million objects, a crowd, evictions beside LRU
	@ulimit -n 8192 && $(TARGET)/release/bench_store
	@$(CARGO) test -q --release -p offload-cgi --lib more_is_hit_than_with_lru -- --nocapture | grep hit

bench bench-throttle: PACKAGES += nginx-light libapache2-mod-bw libapache2-mod-qos iproute2
bench-throttle: build ## Rates, workers and CPU beside mod_ratelimit, mod_bw, mod_qos and nginx; 10,000 downloads (as root)
	@$(TARGET)/release/bench_throttle

bench bench-daemon: PACKAGES += nginx-light varnish
bench-daemon: build ## The daemon beside nginx (cache, plain files) and Varnish: speed, CPU; 10,000 slow downloads
	@$(TARGET)/release/bench_daemon

readme: ## Write the tables of directives and settings into the README anew
	UPDATE_README=1 $(CARGO) test -q -p offload-core the_readme_has
	UPDATE_README=1 $(CARGO) test -q -p offload-cgi --lib the_readme_has -- --test-threads=1

install: build ## Install the module where apxs says, and offload-cgi into CGIDIR
	install -D -m 644 $(TARGET)/release/libmod_offload.so "$(DESTDIR)$$($(APXS) -q LIBEXECDIR)/mod_offload.so"
	install -D -m 755 $(TARGET)/release/offload-cgi "$(DESTDIR)$(CGIDIR)/offload-cgi"

clean: ## Remove everything that was built
	$(CARGO) clean

.PHONY: help setup build faulty demo check test loom soak soak-limits soak-store fuzz bench bench-redirect bench-limits bench-store bench-throttle bench-daemon readme install clean
