# The long lines, remembered. `make demo` and `make test` do all their own set-up on Debian 12.

GO ?= go
export CGO_ENABLED = 0
BUILD := build
export VOLANT_BUILD = $(CURDIR)/$(BUILD)
IMAGES := $(patsubst %,$(BUILD)/images/%.tar,nginx redis sshd mosquitto testserver)
KERNEL := $(BUILD)/kernel/kernel.json

.DEFAULT_GOAL := build
.PHONY: build deb deb-test demo test bench lint race fuzz clean

# The guest's PID 1: static, small, embedded in the volant binary.
guest/initbin/bin/volant-init: $(shell find guest kernel -name '*.go' -not -name '*_test.go') go.mod go.sum
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./guest/cmd/init

build: guest/initbin/bin/volant-init
	$(GO) build -o $(BUILD)/volant ./cmd/volant

# The guests' kernel out of Debian's package: unpacked here, never installed.
$(KERNEL): | build
	$(BUILD)/volant setup kernel --dir $(BUILD)/kernel

# OCI images of real software out of Debian packages.
$(BUILD)/images/%.tar:
	@mkdir -p $(BUILD)/images
	$(GO) run ./internal/debimage/cmd/debimage -cache $(BUILD)/debs $* $@

# One of them is ours, and is made anew when its source changes.
$(BUILD)/images/testserver.tar: $(wildcard volanttest/testserver/*.go volanttest/testserver/cmd/testserver/*.go)

# The Debian package, with man pages and completions out of the command tree.
VERSION ?= $(shell git describe --tags --match 'v[0-9]*' 2>/dev/null | sed 's/^v//;s/-/+/g' || true)
deb: export VERSION := $(or $(VERSION),0.0.0~$(shell git log -1 --date=format:%Y%m%d --format=%cd.%h 2>/dev/null || echo dev))
deb: export ARCH := $(shell $(GO) env GOARCH)
deb: build
	rm -rf $(BUILD)/deb
	$(GO) run -tags manual ./cmd/volant $(BUILD)/deb
	gzip -9n $(BUILD)/deb/man/*.1
	$(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0 package -f packaging/nfpm.yaml -p deb -t $(BUILD)/volant.deb

deb-test: deb
	VOLANT_DEB=$(CURDIR)/$(BUILD)/volant.deb VOLANT_REQUIRE=root,package $(GO) test -count 1 ./packaging

demo:
	@scripts/deps demo
	@$(MAKE) --no-print-directory build $(KERNEL) $(BUILD)/images/nginx.tar
	$(GO) run ./demo

# Everything, in two passes: what needs nothing, then real microVMs and namespaces, one package at a time.
# VOLANT_REQUIRE makes a test which lacks its needs fail instead of skip.
test:
	@scripts/deps test
	@$(MAKE) --no-print-directory build $(KERNEL) $(IMAGES)
	$(GO) vet ./...
	scripts/gotest -short ./...
	VOLANT_REQUIRE=root,machine,lab scripts/gotest -p 1 -count 1 -timeout 20m $$(scripts/needy)

bench:
	@scripts/deps bench
	@$(MAKE) --no-print-directory build $(KERNEL) $(IMAGES)
	$(GO) run ./bench $(if $(BENCH),-run $(BENCH))

race: ; CGO_ENABLED=1 $(GO) test -race -short ./...
lint: ; $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2 run ./...
fuzz: ; $(GO) test ./$(P) -fuzz . -fuzztime 1m # make fuzz P=guest
clean: ; rm -rf $(BUILD) guest/initbin/bin/volant-init
