package live

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	volant "github.com/volant-edge/volant"
)

// have is a volant.Have in few bytes. Its machine, node, epoch and sequence are the fact's.
type have struct {
	App        volant.AppID `json:"a,omitempty"`
	State      volant.State `json:"s"`
	Generation uint64       `json:"g,omitempty"`
	Config     string       `json:"v,omitempty"`
	Since      int64        `json:"t,omitempty"` // microseconds since 1970, as all times here
	IP         netip.Addr   `json:"i,omitzero"`
	PrivateIP  netip.Addr   `json:"p,omitzero"`
	Drained    int64        `json:"dt,omitempty"`
	Draining   bool         `json:"d,omitempty"`
	Checks     []check      `json:"c,omitempty"`
	Ready      bool         `json:"y,omitempty"`
	Memory     int          `json:"m,omitempty"`
	Boots      uint64       `json:"b,omitempty"`
	Exit       *exit        `json:"x,omitempty"`
	Reason     string       `json:"r,omitempty"`
	Restarts   int          `json:"n,omitempty"`
	Failures   int          `json:"f,omitempty"`
	Orphan     bool         `json:"o,omitempty"`
	Cold       bool         `json:"k,omitempty"`
	Life       uint64       `json:"l,omitempty"`
}

type check struct {
	Name          string `json:"n"`
	Status        string `json:"s"`
	Output        string `json:"o,omitempty"`
	Updated       int64  `json:"t,omitempty"`
	Informational bool   `json:"i,omitempty"`
}

type exit struct {
	Code      int   `json:"c"`
	Signal    int   `json:"s,omitempty"`
	OOM       bool  `json:"o,omitempty"`
	Requested bool  `json:"r,omitempty"`
	At        int64 `json:"t,omitempty"`
}

// EncodeHave is h as a fact. What people read of it is cut where it is long: reason, outputs of checks, at last the
// checks that are the same as others.
func EncodeHave(h volant.Have) Fact {
	w := have{
		App: volant.AppID(cut(string(h.App), 40)), State: volant.State(cut(string(h.State), 20)), Generation: h.Generation,
		Config: cut(h.Version, 64), Since: micros(h.Since), IP: h.IP.WithZone(""), PrivateIP: h.PrivateIP.WithZone(""),
		Drained: micros(h.Drained), Draining: h.Draining, Ready: h.Ready, Memory: h.Memory, Boots: h.Boots,
		Reason: cut(h.Reason, 200), Restarts: h.Restarts, Failures: h.Failures, Orphan: h.Orphan, Cold: h.Cold, Life: h.Life,
	}
	if x := h.Exit; x != nil {
		w.Exit = &exit{x.Code, x.Signal, x.OOM, x.Requested, micros(x.At)}
	}
	for _, c := range h.Checks {
		w.Checks = append(w.Checks, check{cut(c.Name, 60), cut(c.Status, 10), cut(c.Output, 120), micros(c.Updated), c.Informational})
	}
	return Fact{
		Key: Key{Have, string(h.Machine)}, Version: Version{h.Epoch, h.Seq}, Node: h.Node, Body: w.bounded(),
	}
}

// bounded is w in at most MaxBody bytes.
func (w *have) bounded() []byte {
	outputs := func(n int) func() {
		return func() {
			for i := range w.Checks {
				w.Checks[i].Output = cut(w.Checks[i].Output, n)
			}
		}
	}
	steps := []func(){
		func() {}, outputs(40), outputs(0),
		func() { w.Reason = cut(w.Reason, 80) },
		func() { w.Checks = worst(w.Checks, 4) },
		func() { w.Checks, w.Reason = worst(w.Checks, 1), cut(w.Reason, 20) },
		func() { w.App, w.Config, w.Reason, w.Checks = cut(w.App, 20), cut(w.Config, 32), "", nil },
	}
	var b []byte
	for _, step := range steps {
		step()
		var err error
		if b, err = json.Marshal(w); err == nil && len(b) <= MaxBody {
			break
		}
	}
	return b
}

// worst are the n checks that matter most: those which do not pass.
func worst(cs []check, n int) []check {
	var out []check
	for _, passing := range []bool{false, true} {
		for _, c := range cs {
			if (c.Status == volant.CheckPassing) == passing && len(out) < n {
				out = append(out, c)
			}
		}
	}
	return out
}

// DecodeHave is the Have that a fact of its host holds.
func DecodeHave(f Fact) (volant.Have, error) {
	var w have
	id := volant.MachineID(f.Key.ID)
	if f.Key.Kind != Have || f.Gone || !id.Valid() {
		return volant.Have{}, volant.Invalidf("live fact %q is not a machine's state", f.Key.ID)
	}
	if err := json.Unmarshal(f.Body, &w); err != nil {
		return volant.Have{}, volant.Invalidf("live state of machine %s: %v", id, err)
	}
	h := volant.Have{
		Machine: id, App: w.App, Node: f.Node, Epoch: f.Version.Epoch, Seq: f.Version.Seq, State: w.State, Generation: w.Generation,
		Version: w.Config, Since: moment(w.Since), IP: w.IP, PrivateIP: w.PrivateIP, Drained: moment(w.Drained), Draining: w.Draining,
		Ready: w.Ready, Memory: w.Memory, Boots: w.Boots, Reason: w.Reason, Restarts: w.Restarts, Failures: w.Failures,
		Orphan: w.Orphan, Cold: w.Cold, Life: w.Life,
	}
	if x := w.Exit; x != nil {
		h.Exit = &volant.Exit{Code: x.Code, Signal: x.Signal, OOM: x.OOM, Requested: x.Requested, At: moment(x.At)}
	}
	for _, c := range w.Checks {
		h.Checks = append(h.Checks, volant.Check{
			Name: c.Name, Status: c.Status, Output: c.Output, Updated: moment(c.Updated), Informational: c.Informational,
		})
	}
	return h, nil
}

// EncodeRoom is the room of a host as a fact: v in JSON, which must not be larger than MaxBody. With a zero version
// it gets the next one when it is set.
func EncodeRoom(node volant.NodeID, version Version, v any) (Fact, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return Fact{}, volant.Invalidf("room of host %s: %v", node, err)
	}
	if len(b) > MaxBody {
		return Fact{}, volant.Invalidf("room of host %s: %d bytes, at most %d", node, len(b), MaxBody)
	}
	return Fact{Node: node, Key: Key{Room, string(node)}, Version: version, Body: b}, nil
}

// DecodeRoom reads into v what EncodeRoom wrote. A node may speak of itself alone.
func DecodeRoom(f Fact, v any) error {
	if f.Key.Kind != Room || f.Gone || f.Key.ID != string(f.Node) {
		return volant.Invalidf("live fact %q of node %s is not its room", f.Key.ID, f.Node)
	}
	if err := json.Unmarshal(f.Body, v); err != nil {
		return volant.Invalidf("room of host %s: %v", f.Node, err)
	}
	return nil
}

// cut is the valid beginning of a text that takes at most n bytes in JSON, with a mark where it was longer.
func cut[S ~string](s S, n int) S {
	const mark = "…"
	text := strings.ToValidUTF8(string(s), "?")
	size := 0
	for i, r := range text {
		size += jsonSize(r)
		if size > n {
			if i <= len(mark) {
				return ""
			}
			return S(cutBytes(text[:i], len(mark)) + mark)
		}
	}
	return S(text)
}

// cutBytes takes at least n bytes off the end of s.
func cutBytes(s string, n int) string {
	i := len(s) - n
	for i > 0 && !utf8.RuneStart(s[i]) {
		i--
	}
	return s[:max(i, 0)]
}

// jsonSize is the most bytes that a character takes in JSON.
func jsonSize(r rune) int {
	switch {
	case r < ' ' || r == '<' || r == '>' || r == '&' || r == '\u2028' || r == '\u2029' || r == 0x7f:
		return 6
	case r == '"' || r == '\\':
		return 2
	}
	return utf8.RuneLen(r)
}

func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func moment(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
