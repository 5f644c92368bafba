package mesh

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/volant-edge/volant"
)

var compare = cmp.Options{cmp.AllowUnexported(change{}, session{}), cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})}

func TestPlan(t *testing.T) {
	a, b := Key{1}, Key{2}
	at, moved, other := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.9:9"), netip.MustParseAddrPort("192.0.2.2:1")
	addr := netip.MustParseAddr("fd76:6f6c:616e::1")
	full := session{key: a, endpoint: at, allowed: addr, keepalive: keepalive}
	heard := full
	heard.endpoint, heard.handshake, heard.rx = moved, time.Unix(1, 0), 7
	old, next := full, session{key: b, allowed: addr, keepalive: keepalive}
	old.allowed = netip.Addr{}
	for _, c := range []struct {
		name       string
		have, want []session
		configured map[Key]netip.AddrPort
		changes    []change
	}{
		{"a new peer gets everything", nil, []session{full}, nil, []change{{key: a, endpoint: at, allow: addr, keepalive: keepalive}}},
		{"a peer that stays is not touched", []session{full}, []session{full}, nil, nil},
		{"where a peer was heard stays", []session{heard}, []session{full}, map[Key]netip.AddrPort{a: at}, nil},
		{
			"a new endpoint is taken",
			[]session{heard},
			[]session{{key: a, endpoint: other, allowed: addr, keepalive: keepalive}},
			map[Key]netip.AddrPort{a: at},
			[]change{{key: a, endpoint: other}},
		},
		{"a peer that is gone is removed", []session{full}, nil, nil, []change{{key: a, remove: true}}},
		{"a next key comes without an address", []session{full}, []session{full, {key: b}}, nil, []change{{key: b}}},
		{
			"the address moves before it is taken away",
			[]session{full, {key: b}},
			[]session{old, next},
			nil,
			[]change{{key: b, allow: addr, keepalive: keepalive}, {key: a, disallow: true}},
		},
		{"a peer may have no endpoint", nil, []session{{key: b, allowed: addr, keepalive: keepalive}}, nil, []change{{key: b, allow: addr, keepalive: keepalive}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := cmp.Diff(c.changes, plan(c.have, c.want, c.configured), compare); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestNextKeyHasTheAddressOnceItIsUsed(t *testing.T) {
	addr, at := netip.MustParseAddr("fd76:6f6c:616e::1"), netip.MustParseAddrPort("192.0.2.1:1")
	cfg := Config{Peers: []Peer{{Key: Key{1}, Next: Key{2}, Addr: addr, Endpoint: at}}}
	for _, used := range []bool{false, true} {
		var holders []Key
		for _, s := range cfg.sessions(func(Key) bool { return used }) {
			if s.allowed == addr {
				holders = append(holders, s.key)
			}
		}
		want := []Key{{1}}
		if used {
			want = []Key{{2}}
		}
		if d := cmp.Diff(want, holders); d != "" {
			t.Errorf("used %v: -want +got:\n%s", used, d)
		}
	}
}

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		links []int
		want  int
	}{
		{nil, 1420}, {[]int{1500}, 1420}, {[]int{9000}, 1420}, {[]int{1500, 1400}, 1320}, {[]int{1300}, 1280}, {[]int{1499}, 1419},
	} {
		if got := linkMTU(c.links); got != c.want {
			t.Errorf("links %v: got %d, want %d", c.links, got, c.want)
		}
	}
	if got, want := ladder(1420), []int{1420, 1408, 1392, 1376, 1360, 1344, 1328, 1312, 1296, 1280}; !cmp.Equal(got, want) {
		t.Errorf("ladder: got %v, want %v", got, want)
	}
	if got, want := ladder(1280), []int{1280}; !cmp.Equal(got, want) {
		t.Errorf("ladder: got %v, want %v", got, want)
	}
	for learned, want := range map[int]int{0: 0, 1500: 1408, 1400: 1312, 1200: 1280} {
		if got := inside(learned); got != want {
			t.Errorf("inside %d: got %d, want %d", learned, got, want)
		}
	}
}

func TestSysctlsAreOnlyRaised(t *testing.T) {
	for in, want := range map[string]string{"0": "3", "1": "3", "3": "3", "1024": "1027", "x": "x"} {
		if got, change := withBits(in, 3); got != want || change != (in != want) {
			t.Errorf("bits of %q: got %q %v, want %q", in, got, change, want)
		}
	}
	for in, want := range map[string]string{
		"4096\t131072\t6291456": "4096 131072 33554432", "4096 131072 67108864": "4096 131072 67108864", "": "", "1": "33554432",
	} {
		if got, change := withMost(in, 32<<20); got != want || change != (in != want) {
			t.Errorf("most of %q: got %q %v, want %q", in, got, change, want)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := func() Config {
		return Config{
			Name: Interface("0a0b0c0d"), Private: Private{1}, Port: 1, Addr: volant.MeshAddr("0a0b0c0d"),
			Peers: []Peer{{Node: "00000001", Key: Key{1}, Addr: volant.MeshAddr("00000001")}},
		}
	}
	if c := good(); c.check() != nil {
		t.Fatal(c.check())
	}
	for name, spoil := range map[string]func(*Config){
		"name":             func(c *Config) { c.Name = "wg0" },
		"no key":           func(c *Config) { c.Private = Private{} },
		"no port":          func(c *Config) { c.Port = 0 },
		"foreign address":  func(c *Config) { c.Addr = netip.MustParseAddr("fd00::1") },
		"small mtu":        func(c *Config) { c.MTU = 1279 },
		"peer without key": func(c *Config) { c.Peers[0].Key = Key{} },
		"peer with ours":   func(c *Config) { c.Peers[0].Addr = c.Addr },
		"peer twice":       func(c *Config) { c.Peers = append(c.Peers, c.Peers[0]) },
		"next is the same": func(c *Config) { c.Peers[0].Next = c.Peers[0].Key },
		"peer's address":   func(c *Config) { c.Peers[0].Addr = netip.MustParseAddr("2001:db8::1") },
	} {
		c := good()
		spoil(&c)
		if c.check() == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestConfigTravelsWhole(t *testing.T) {
	p, err := NewPrivate()
	if err != nil {
		t.Fatal(err)
	}
	in := Config{
		Name: "vl00000001w", Private: p, Port: 4281, Addr: volant.MeshAddr("00000001"), MTU: 1380,
		Peers: []Peer{{Node: "00000002", Key: p.Public(), Addr: volant.MeshAddr("00000002"), Endpoint: netip.MustParseAddrPort("[2001:db8::1]:4281")}, {Node: "00000003", Key: Key{3}, Next: Key{4}, Addr: volant.MeshAddr("00000003")}},
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Config
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(in, out, compare); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func FuzzParseSessions(f *testing.F) {
	f.Add("private_key=00\nlisten_port=1\npublic_key=0100000000000000000000000000000000000000000000000000000000000000\nendpoint=192.0.2.1:1\nallowed_ip=fd76::1/128\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\nrx_bytes=7\ntx_bytes=8\npersistent_keepalive_interval=5\n")
	f.Add("public_key=x\n")
	f.Fuzz(func(_ *testing.T, text string) { _, _ = parseSessions(text) }) // it must not panic
}

func TestParseSessions(t *testing.T) {
	got, err := parseSessions("private_key=00\npublic_key=0100000000000000000000000000000000000000000000000000000000000000\nendpoint=192.0.2.1:1\nallowed_ip=fd76::1/128\nlast_handshake_time_sec=5\nlast_handshake_time_nsec=6\nrx_bytes=7\ntx_bytes=8\npersistent_keepalive_interval=5\npublic_key=0200000000000000000000000000000000000000000000000000000000000000\nlast_handshake_time_sec=0\n")
	want := []session{
		{key: Key{1}, endpoint: netip.MustParseAddrPort("192.0.2.1:1"), allowed: netip.MustParseAddr("fd76::1"), keepalive: keepalive, handshake: time.Unix(5, 6), rx: 7, tx: 8},
		{key: Key{2}},
	}
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
