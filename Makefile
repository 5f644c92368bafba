# The long lines, remembered. `make demo` and `make test` do all their own set-up on Debian 12.

GO      ?= go
GOFLAGS += -trimpath
export CGO_ENABLED ?= 0

build: guest/initbin/bin/volant-init ; $(GO) build -trimpath -o build/volant ./cmd/volant
.PHONY: build

# The guest's PID 1: static, small, embedded in the volant binary.
guest/initbin/bin/volant-init: $(shell find guest -name '*.go' -not -name '*_test.go') go.mod
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./guest/cmd/init

lint: ; $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.12.2 run ./...
.PHONY: lint
fuzz: ; $(GO) test ./$(P) -fuzz . -fuzztime 1m           # make fuzz P=guest
.PHONY: fuzz
