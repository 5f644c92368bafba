package place_test

import (
	"errors"
	"strings"
	"testing"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/place"
)

func host(id volant.NodeID, change ...func(*place.Host)) place.Host {
	h := place.Host{Node: id, Region: "ams", MemoryMB: 4096, Shared: 32, Cores: 4, Strong: true}
	for _, f := range change {
		f(&h)
	}
	return h
}

func TestPick(t *testing.T) {
	small := func(h *place.Host) { h.MemoryMB = 511 }
	tenant := func(h *place.Host) { h.Orgs = []volant.OrgID{"other"} }
	weak := func(h *place.Host) { h.Strong = false }
	for _, tt := range []struct {
		sentence string
		r        place.Request
		hosts    []place.Host
		want     volant.NodeID
		says     string // part of the reason or of the error
	}{
		{"the default machine needs 512 MB", place.Request{}, []place.Host{host("a", small), host("b")}, "b", "not a has 511 MB free"},
		{"in the region that is asked for", place.Request{Region: "syd"}, []place.Host{
			host("a"), host("b", func(h *place.Host) { h.Region = "syd" }),
		}, "b", "b in syd"},
		{"away from siblings before most memory", place.Request{}, []place.Host{
			host("a", func(h *place.Host) { h.Siblings, h.MemoryMB = 2, 99999 }), host("b", func(h *place.Host) { h.Siblings = 1 }),
		}, "b", "the fewest, then the most, of 2 hosts"},
		{"then where most memory is free", place.Request{}, []place.Host{host("a"), host("b", func(h *place.Host) { h.MemoryMB = 5000 })}, "b", "5000 MB free"},
		{"then in order", place.Request{}, []place.Host{host("b"), host("a")}, "a", ""},
		{"not on one that refused", place.Request{Avoid: []volant.NodeID{"a"}}, []place.Host{host("a"), host("b")}, "b", "not a refused it"},
		{"not on a silent one", place.Request{}, []place.Host{host("a", func(h *place.Host) { h.Silent = true })}, "", "a is silent"},
		{"not on a closed one", place.Request{}, []place.Host{host("a", func(h *place.Host) { h.Closed = true })}, "", "a takes no new machines"},
		{"organizations are not mixed where the engine is not for several", place.Request{Org: "mine"}, []place.Host{
			host("a", tenant, weak),
		}, "", "a serves another organization"},
		{"unless told so", place.Request{Org: "mine"}, []place.Host{
			host("a", tenant, weak, func(h *place.Host) { h.Mixed = true }),
		}, "a", ""},
		{"they are mixed where the engine keeps them apart", place.Request{Org: "mine"}, []place.Host{host("a", tenant)}, "a", ""},
		{"the own organization is no other", place.Request{Org: "other"}, []place.Host{host("a", tenant, weak)}, "a", ""},
		{"performance machines need whole cores", place.Request{Guest: volant.Guest{CPUKind: "performance", CPUs: 8}}, []place.Host{
			host("a"),
		}, "", "a has 4 whole cores free"},
		{"shared machines need promises left", place.Request{Guest: volant.Guest{CPUs: 8}}, []place.Host{
			host("a", func(h *place.Host) { h.Shared = 7 }),
		}, "", "a has 7 shared vCPUs to promise"},
		{"all elsewhere", place.Request{Region: "syd"}, []place.Host{host("a")}, "", "all 1 hosts are in other regions"},
		{"no host at all", place.Request{}, nil, "", "there is no host"},
	} {
		t.Run(tt.sentence, func(t *testing.T) {
			got, err := place.Pick(tt.r, tt.hosts)
			if tt.want == "" {
				if !errors.Is(err, volant.ErrNoCapacity) || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, %v; want no capacity, and %q", got, err, tt.says)
				}
				return
			}
			if err != nil || got.Node != tt.want || !strings.Contains(got.Text, tt.says) {
				t.Errorf("got %+v, %v; want %s, and %q", got, err, tt.want, tt.says)
			}
		})
	}
}

func TestFitsCountsMemoryAndCPUs(t *testing.T) {
	hosts := []place.Host{
		host("a", func(h *place.Host) { h.MemoryMB = 1300 }),                                                    // 2 by memory
		host("b", func(h *place.Host) { h.Shared = 3 }),                                                         // 3 by vCPUs
		host("c", func(h *place.Host) { h.MemoryMB = -5 }), host("d", func(h *place.Host) { h.Region = "syd" }), // none
	}
	if got := place.Fits(place.Request{Region: "ams"}, hosts); got != 5 {
		t.Errorf("got %d, want 5", got)
	}
	if got := place.Fits(place.Request{Region: "ams", Guest: volant.Guest{CPUKind: "performance", CPUs: 2, MemoryMB: 1024}}, hosts); got != 3 {
		t.Errorf("performance: got %d, want 3", got)
	}
}
