package backhaul_test

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/backhaul"
)

var equal = cmp.Comparer(func(x, y netip.AddrPort) bool { return x == y })

func diff(x, y any) string {
	return cmp.Diff(x, y, equal, cmp.Comparer(func(x, y backhaul.Name) bool { return x == y }))
}

func name(t testing.TB, s string) backhaul.Name {
	n, ok := backhaul.NameOf(s)
	if !ok {
		t.Fatalf("%q is no name", s)
	}
	return n
}

func request(t testing.TB) backhaul.Request {
	app, ok := backhaul.AppOf("app_0123456789abcdef")
	if !ok {
		t.Fatal("an app's ID was not taken")
	}
	m, ok := backhaul.MachineOf("0123456789abcd")
	if !ok {
		t.Fatal("a machine's ID was not taken")
	}
	return backhaul.Request{
		EdgeEpoch: 7, Stream: 1 << 40, HostEpoch: 9, App: app, Group: name(t, "web"), Machine: m, Port: 8080,
		Wait: 1500 * time.Millisecond, Quiet: true, Retry: true, Region: name(t, "dfw"),
		Client: netip.MustParseAddrPort("203.0.113.9:4711"), Local: netip.MustParseAddrPort("[2001:db8::1]:443"),
	}
}

func TestRequestComesBackAsItWas(t *testing.T) {
	full := request(t)
	plain := backhaul.Request{Port: 1}
	for _, want := range []backhaul.Request{full, plain} {
		b := backhaul.AppendRequest(nil, &want)
		var got backhaul.Request
		n, err := backhaul.ParseRequest(append(b, "the client's bytes"...), &got)
		if err != nil || n != len(b) {
			t.Fatalf("parsed %d of %d bytes: %v", n, len(b), err)
		}
		if d := diff(want, got); d != "" {
			t.Error(d)
		}
		for i := range b { // in any split
			if n, err := backhaul.ParseRequest(b[:i], &got); n != 0 || err != nil {
				t.Fatalf("%d of %d bytes: parsed %d, %v", i, len(b), n, err)
			}
		}
		if len(b) > backhaul.RequestMost {
			t.Errorf("a request of %d bytes, most is %d", len(b), backhaul.RequestMost)
		}
	}
	if got, want := full.App.ID(), volant.AppID("app_0123456789abcdef"); got != want {
		t.Errorf("app %s, want %s", got, want)
	}
	if got, want := full.Machine.ID(), volant.MachineID("0123456789abcd"); got != want {
		t.Errorf("machine %s, want %s", got, want)
	}
}

func TestIDsOfOtherFormsAreNotTaken(t *testing.T) {
	for _, id := range []volant.AppID{"", "app_1", "app_0123456789abcdeF", "app_0123456789abcde", "xpp_0123456789abcdef"} {
		if _, ok := backhaul.AppOf(id); ok {
			t.Errorf("app %q was taken", id)
		}
	}
	for _, id := range []volant.MachineID{"1", "0123456789abcg", "00000000000000"} {
		if _, ok := backhaul.MachineOf(id); ok {
			t.Errorf("machine %q was taken", id)
		}
	}
	if _, ok := backhaul.NameOf(string(make([]byte, 64))); ok {
		t.Error("a name of 64 bytes was taken")
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	full := request(t)
	for _, tc := range []struct {
		name string
		at   int
		to   byte
		want error
	}{
		{"another version", 0, 2, backhaul.ErrVersion},
		{"unknown flag", 1, 0x80, backhaul.ErrMalformed},
		{"group too long", 2, 64, backhaul.ErrMalformed},
		{"region too long", 3, 9, backhaul.ErrMalformed},
		{"reserved byte", 43, 1, backhaul.ErrMalformed},
		{"wait too long", 46, 1, backhaul.ErrMalformed},
	} {
		b := backhaul.AppendRequest(nil, &full)
		b[tc.at] = tc.to
		var r backhaul.Request
		if _, err := backhaul.ParseRequest(b, &r); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

func TestAnswerComesBackAsItWas(t *testing.T) {
	want := backhaul.Answer{Code: backhaul.Busy, Rule: 3, Epoch: 8, Seq: 1 << 50, Slots: 25, Machine: request(t).Machine}
	b := backhaul.AppendAnswer(nil, &want)
	if len(b) != backhaul.AnswerLen {
		t.Fatalf("an answer of %d bytes, want %d", len(b), backhaul.AnswerLen)
	}
	var got backhaul.Answer
	if err := backhaul.ParseAnswer(b, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	b[0] = 99
	if err := backhaul.ParseAnswer(b, &got); err != nil || got.Code != backhaul.OtherVersion || got.Epoch != 8 {
		t.Errorf("an answer of another version: %+v, %v", got, err)
	}
}

func TestFramesNeedNoMemory(t *testing.T) {
	r, a := request(t), backhaul.Answer{Code: backhaul.OK}
	buf := make([]byte, 0, backhaul.RequestMost)
	var got backhaul.Request
	var back backhaul.Answer
	allocs := testing.AllocsPerRun(100, func() {
		b := backhaul.AppendRequest(buf, &r)
		if _, err := backhaul.ParseRequest(b, &got); err != nil {
			t.Fatal(err)
		}
		if err := backhaul.ParseAnswer(backhaul.AppendAnswer(buf, &a), &back); err != nil {
			t.Fatal(err)
		}
		if _, ok := backhaul.AppOf("app_0123456789abcdef"); !ok {
			t.Fatal("an app's ID was not taken")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for a request and its answer", allocs)
	}
}

func FuzzRequest(f *testing.F) {
	r := request(f)
	f.Add(backhaul.AppendRequest(nil, &r))
	f.Add(backhaul.AppendRequest(nil, &backhaul.Request{}))
	f.Add([]byte{backhaul.Version})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r, again backhaul.Request
		n, err := backhaul.ParseRequest(b, &r)
		if err != nil || n == 0 {
			return
		}
		if n > len(b) || n > backhaul.RequestMost {
			t.Fatalf("parsed %d of %d bytes", n, len(b))
		}
		out := backhaul.AppendRequest(nil, &r)
		if m, err := backhaul.ParseRequest(out, &again); err != nil || m != len(out) {
			t.Fatalf("what was parsed does not parse again: %d of %d, %v", m, len(out), err)
		}
		if d := diff(r, again); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(backhaul.AppendAnswer(nil, &backhaul.Answer{Code: backhaul.OK, Slots: 3}))
	f.Add(bytes.Repeat([]byte{2}, backhaul.AnswerLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, again backhaul.Answer
		if err := backhaul.ParseAnswer(b, &a); err != nil || b[0] != backhaul.Version {
			return
		}
		out := backhaul.AppendAnswer(nil, &a)
		if !bytes.Equal(out, b[:backhaul.AnswerLen]) {
			t.Fatalf("%x came back as %x", b[:backhaul.AnswerLen], out)
		}
		if err := backhaul.ParseAnswer(out, &again); err != nil || a != again {
			t.Fatalf("%+v came back as %+v: %v", a, again, err)
		}
	})
}
