package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/why"
)

// road is what is remembered of one connection. It is written by value, so that remembering costs no
// memory of its own; words are made of it when somebody asks.
type road struct {
	id      uint64
	epoch   uint64
	start   time.Time
	route   *route
	client  netip.AddrPort
	local   netip.AddrPort
	machine volant.MachineID
	port    uint16
	rule    rule
	refusal bool
	end     end
	tries   uint32        // attempts to connect that failed
	waited  time.Duration // from accept until the machine accepted
	took    time.Duration // from accept to the end
	up      int64
	down    int64
	node    *node     // host of the machine, if that is another node
	came    bool      // node is the one where the client entered
	http    *exchange // what an HTTP request was; nil for other connections
}

func (r *road) placed(st seat, now time.Time) {
	r.machine, r.port, r.rule = st.place.m.id, st.place.svc.port, st.rule
	r.waited = now.Sub(r.start)
	if !r.came {
		r.node = st.node
	}
}

func (r *road) over(how end, up, down int64, now time.Time) {
	r.end, r.up, r.down, r.took = how, up, down, now.Sub(r.start)
}

func (r *road) refused(why rule, now time.Time) {
	r.rule, r.refusal, r.took = why, true, now.Sub(r.start)
}

// request is the connection's ID as people see it.
func (r *road) request() string {
	if r.http != nil {
		return r.http.id
	}
	return strconv.FormatUint(r.epoch, 16) + "-" + strconv.FormatUint(r.id, 16)
}

// record puts the road in words.
func (r *road) record() why.Record {
	rec := why.Record{
		Time: r.start, Kind: why.Connection, Org: r.route.org, App: r.route.id, Machine: r.machine, Request: r.request(),
		Rule: r.rule.String(),
		Attrs: map[string]string{
			"client": r.client.String(), "address": r.local.String(), "waited": r.waited.String(),
		},
	}
	if r.http != nil {
		r.http.describe(rec.Attrs)
	}
	if r.refusal {
		rec.Kind = why.Refusal
		rec.Text = refusalText(r)
		rec.Attrs["waited"] = r.took.String()
		return rec
	}
	rec.Text = fmt.Sprintf("%s, to port %d of machine %s%s, connected after %s", placedText(r.rule), r.port, r.machine, r.way(rec.Attrs),
		r.waited.Round(time.Microsecond))
	if r.tries > 0 {
		rec.Text += fmt.Sprintf(" and %d attempts", r.tries+1)
	}
	if r.end == endOpen {
		rec.Text += "; open"
		return rec
	}
	rec.Text += fmt.Sprintf("; ended after %s: %s; %d bytes up, %d down", r.took.Round(time.Millisecond), r.end, r.up, r.down)
	rec.Attrs["end"] = r.end.String()
	rec.Attrs["bytes_up"] = strconv.FormatInt(r.up, 10)
	rec.Attrs["bytes_down"] = strconv.FormatInt(r.down, 10)
	return rec
}

// way says over which node the connection went.
func (r *road) way(attrs map[string]string) string {
	if r.node == nil {
		return ""
	}
	_, region := r.node.where()
	if r.came {
		attrs["entered"] = string(r.node.id)
		return fmt.Sprintf(", entered at node %s in region %s", r.node.id, region)
	}
	attrs["node"] = string(r.node.id)
	return fmt.Sprintf(" on node %s in region %s over the backhaul", r.node.id, region)
}

func placedText(r rule) string {
	switch r {
	case ruleSoft:
		return "least loaded machine under its soft limit"
	case ruleSpill:
		return "no machine under its soft limit: least loaded under its hard limit"
	case ruleWaited:
		return "the first slot that became free, at another node"
	case ruleFar:
		return "no machine near under its limit: nearest of those far away"
	case ruleUnknown:
		return "no other machine is known to have a free slot: nearest of those whose host is not heard"
	default: // ruleProbe: no other rule places a connection
		return "no other machine had a free slot: tried one that refused before"
	}
}

func refusalText(r *road) string {
	took := r.took.Round(time.Millisecond)
	switch r.rule {
	case ruleNoRoute:
		return "no service has this address and port"
	case ruleHandler:
		return "the service asks for a handler which this version does not have"
	case ruleQueueFull:
		return "all machines are at their hard limit and the app's queue is full (max_queue)"
	case rulePeerLimit:
		return "this client's network already has as many connections waiting as it may (max_per_client)"
	case ruleQueueTime:
		return fmt.Sprintf("no slot became free within the queue time; waited %s", took)
	case ruleConnectTime:
		return fmt.Sprintf("no machine's app accepted the connection in time; %d attempts in %s", r.tries, took)
	case ruleNoWake:
		return "no machine is awake and auto_start is off"
	case ruleNoMachine:
		return "the app has no machine that could serve and none may be made"
	case ruleAppGone:
		return "the service was removed while the connection waited"
	case ruleClientGone:
		return fmt.Sprintf("the client went away after waiting %s", took)
	case ruleNoData:
		return fmt.Sprintf("the client sent nothing for %s, and this service wakes a machine at the first byte only", took)
	case ruleStopping:
		return "the proxy is stopping"
	case ruleNoFiles:
		return "this node has no more file descriptors"
	case ruleNoName:
		return "no app at this shared address answers to the host name that was asked for"
	case ruleNoCert:
		return "there is no certificate for the host name that was asked for"
	case ruleHandshake:
		return "the TLS handshake failed"
	case ruleNoTLS:
		return "the client did not ask for TLS, which this port needs"
	case ruleMisdirected:
		return "the request asks for a host of another app than the one its TLS connection belongs to"
	case ruleBroken:
		return "the app ended the connection without an answer"
	case ruleNoInstance:
		return "the machine that was asked for is not one that this service has, or is cordoned or draining"
	case ruleNoRegion:
		return "no machine is in the regions that were asked for"
	case ruleReplay:
		return "the app's fly-replay cannot be read"
	case ruleReplays:
		return "the request was sent on by fly-replay more than 10 times"
	case ruleReplayBody:
		return "the app sent the request on by fly-replay, but its body is over 1 MiB or too much is kept of others"
	case ruleReplayApp:
		return "the app sent the request on by fly-replay to an app that its organization does not have, or that serves no HTTP at this port"
	default: // the others place a connection
		return "refused: " + r.rule.String()
	}
}

// roads is the ring of recent connections.
type roads struct {
	mu   sync.Mutex
	ring []road
}

func newRoads(n int) *roads { return &roads{ring: make([]road, n)} }

// put writes a connection's road, over the older state of the same one if that is still there.
func (rs *roads) put(r *road) {
	rs.mu.Lock()
	slot := &rs.ring[r.id%uint64(len(rs.ring))]
	if slot.id <= r.id {
		*slot = *r
	}
	rs.mu.Unlock()
}

// query returns the records that match, newest first.
func (rs *roads) query(q why.Query) []why.Record {
	rs.mu.Lock()
	var found []road
	for i := range rs.ring {
		if r := &rs.ring[i]; r.id != 0 && r.match(q) {
			found = append(found, *r)
		}
	}
	rs.mu.Unlock()
	slices.SortFunc(found, func(x, y road) int { return cmp.Compare(y.id, x.id) })
	found = found[:min(len(found), limit(q))]
	out := make([]why.Record, len(found))
	for i := range found {
		out[i] = found[i].record()
	}
	return out
}

func (r *road) match(q why.Query) bool {
	kind := why.Connection
	if r.refusal {
		kind = why.Refusal
	}
	return (q.Org == "" || q.Org == r.route.org) && (q.App == "" || q.App == r.route.id) &&
		(q.Machine == "" || q.Machine == r.machine) && (q.Request == "" || q.Request == r.request()) &&
		(len(q.Kinds) == 0 || slices.Contains(q.Kinds, kind)) && !r.start.Before(q.Since)
}

func limit(q why.Query) int {
	if q.Limit <= 0 {
		return 100
	}
	return q.Limit
}

func portText(p uint16) string { return strconv.Itoa(int(p)) }
