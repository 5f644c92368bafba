package proxy

// rule names what decided about a connection; records bear its name.
type rule uint8

// The rules by which a connection gets its machine, and those by which it is refused. Nodes tell each other their
// numbers.
const (
	ruleNone    rule = iota
	ruleSoft         // a machine under its soft limit
	ruleSpill        // none under the soft limit: one under the hard limit
	ruleFar          // none near under the soft limit: one far away
	ruleUnknown      // no other is known to have a slot: one of a host that is not heard
	ruleProbe        // a machine that refused the connection before
	ruleFull         // all machines at their hard limit
	ruleNoRoute
	ruleHandler
	ruleQueueFull
	rulePeerLimit
	ruleQueueTime
	ruleConnectTime
	ruleNoWake
	ruleNoMachine
	ruleAppGone
	ruleClientGone
	ruleNoData
	ruleStopping
	ruleNoFiles
	ruleNoName
	ruleNoCert
	ruleHandshake
	ruleNoTLS
	ruleMisdirected
	ruleBroken
	ruleNoInstance
	ruleNoRegion
	ruleReplay
	ruleReplays
	ruleReplayBody
	ruleReplayApp
	ruleBusy   // no slot is free, and the other node that asks did not want to wait
	ruleWaited // a slot became free at another node while it waited there
)

var ruleNames = [...]string{
	"none", "under_soft_limit", "over_soft_limit", "far", "host_not_heard", "probe", "hard_limit", "no_service", "unknown_handler", "queue_full",
	"client_limit", "queue_timeout", "connect_timeout", "no_wake", "no_machine", "app_gone", "client_gone", "no_data",
	"proxy_stopping", "out_of_files", "unknown_host", "no_certificate", "tls_handshake", "tls_required", "misdirected", "app_failed",
	"no_such_machine", "no_such_region", "replay_invalid", "replay_limit", "replay_body", "replay_app",
	"busy", "waited",
}

func (r rule) String() string { return ruleNames[r] }

// end says how a relayed connection ended.
type end uint8

const (
	endOpen         end = iota
	endBoth             // both sides closed in order
	endClientReset      // reset, or gone silent for all keep-alives
	endMachineReset     // the same of the machine
	endHalfClosed       // half-closed and silent for too long
	endLinger           // the client was gone and the machine did not close: reset by us
	endStopping         // the proxy was stopped
	endGuestGone        // the machine stopped, died or was destroyed, and did not close it
	endEdgeLost         // the node where the client entered was not heard, or has booted
	endHostLost         // the same of the machine's host
	endStale            // the machine closed an idle connection as a request came: the request goes on another
)

var endTexts = [...]string{
	"open", "closed by both sides", "the client reset it or vanished", "the machine reset it or vanished",
	"closed by the proxy: half-closed and silent for 10m", "the client was gone and the machine did not close within 10s",
	"closed by the proxy, which was stopped", "the machine ended without closing it",
	"the node where the client entered was not heard any more", "the machine's host was not heard any more",
	"the machine closed it while it was idle",
}

func (e end) String() string { return endTexts[e] }
