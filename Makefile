# The long lines, remembered. `make demo` and `make test` do all their own set-up on Debian 12.

GO ?= go
export CGO_ENABLED = 0
BUILD := build
IMAGES := nginx redis sshd mosquitto testserver

.DEFAULT_GOAL := build
.PHONY: build demo test bench lint race fuzz map clean

# The guest's PID 1: static, small, embedded in the volant binary.
guest/initbin/bin/volant-init: $(shell find guest kernel -name '*.go' -not -name '*_test.go') go.mod go.sum
	$(GO) build -ldflags '-s -w' -o $@ ./guest/cmd/init

build: guest/initbin/bin/volant-init
	$(GO) build -o $(BUILD)/volant ./cmd/volant

# The guests' kernel out of Debian's package: unpacked here, never installed.
$(BUILD)/kernel/kernel.json: | build
	$(BUILD)/volant setup kernel --dir $(BUILD)/kernel

# OCI images of real software out of Debian packages.
$(BUILD)/images/%.tar:
	@mkdir -p $(BUILD)/images
	$(GO) run ./internal/debimage/cmd/debimage -cache $(BUILD)/debs $* $@

demo:
	@scripts/deps demo
	@$(MAKE) --no-print-directory build $(BUILD)/kernel/kernel.json $(BUILD)/images/nginx.tar
	$(GO) run ./demo
