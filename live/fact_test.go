package live_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

func fullHave() volant.Have {
	at := time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC)
	return volant.Have{
		Machine: "0123456789abcd", App: "app_0123456789abcdef", Node: "00000001", Epoch: 4, Seq: 17, State: volant.StateStarted,
		Generation: 3, Version: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Since: at, IP: netip.MustParseAddr("172.27.0.9"),
		PrivateIP: netip.MustParseAddr("fdaa::9"), Drained: at.Add(time.Second), Draining: true, Ready: true, Memory: 512, Boots: 9,
		Checks:   []volant.Check{{Name: "http-8080", Status: volant.CheckPassing, Output: "200 OK", Updated: at, Informational: true}},
		Exit:     &volant.Exit{Code: 137, Signal: 9, OOM: true, Requested: true, At: at},
		Reason:   "a connection waits",
		Restarts: 2, Failures: 1, Orphan: true, Cold: true, Life: 77,
	}
}

func TestAHaveComesBack(t *testing.T) {
	want := fullHave()
	f := live.EncodeHave(want)
	if len(f.Body) > 450 {
		t.Errorf("%d bytes", len(f.Body))
	}
	got, err := live.DecodeHave(f)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}
}

func TestALongHaveFits(t *testing.T) {
	for _, text := range []string{"x", "<", "\x00", "\xff", "é", "\"", "\u2028"} {
		h := fullHave()
		h.Reason = strings.Repeat(text, 5000)
		for range 40 {
			h.Checks = append(h.Checks, volant.Check{Name: strings.Repeat(text, 90), Status: volant.CheckPassing, Output: h.Reason})
		}
		h.Checks = append(h.Checks, volant.Check{Name: "bad", Status: volant.CheckCritical, Output: h.Reason})
		f := live.EncodeHave(h)
		got, err := live.DecodeHave(f)
		if err != nil || len(f.Body) > live.MaxBody {
			t.Fatalf("%q: %d bytes, %v", text, len(f.Body), err)
		}
		if got.State != h.State || got.Version != h.Version || got.App != h.App || len(got.Checks) == 0 || got.Checks[0].Name != "bad" {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestARoomIsItsNodesAlone(t *testing.T) {
	f, err := live.EncodeRoom("00000001", live.Version{Epoch: 1, Seq: 2}, map[string]int{"free_mb": 5})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]int
	if err := live.DecodeRoom(f, &got); err != nil || got["free_mb"] != 5 {
		t.Errorf("%v, %v", got, err)
	}
	f.Node = "00000002"
	if err := live.DecodeRoom(f, &got); err == nil {
		t.Error("a node spoke of another's room")
	}
	if _, err := live.EncodeRoom("00000001", live.Version{}, strings.Repeat("x", live.MaxBody)); err == nil {
		t.Error("a room out of bounds was taken")
	}
}

func FuzzHave(f *testing.F) {
	full := live.EncodeHave(fullHave())
	f.Add(full.Key.ID, full.Body)
	f.Add("0123456789abcd", []byte(`{"s":"started","i":"::1%eth0"}`))
	f.Fuzz(func(t *testing.T, id string, body []byte) {
		h, err := live.DecodeHave(live.Fact{Key: live.Key{Kind: live.Have, ID: id}, Body: body})
		if err != nil {
			return
		}
		again := live.EncodeHave(h)
		if len(again.Body) > live.MaxBody || !json.Valid(again.Body) {
			t.Errorf("%d bytes: %s", len(again.Body), again.Body)
		}
		if _, err := live.DecodeHave(again); err != nil {
			t.Error(err)
		}
	})
}
