package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"github.com/volant-edge/volant"
)

func FuzzReadFrame(f *testing.F) {
	for _, fr := range []frame{{ID: 1, Op: opHello}, {ID: 2, Op: opSetTable, Body: json.RawMessage(`{"version":1}`)}, {Event: eventLoad}} {
		var b bytes.Buffer
		if err := writeFrame(&b, fr); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{3, 0, 0, 0, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := readFrame(bytes.NewReader(b))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := writeFrame(&again, fr); err != nil {
			t.Fatalf("a frame that was read cannot be written: %v", err)
		}
		if _, err := readFrame(&again); err != nil {
			t.Fatalf("a frame that was written cannot be read: %v", err)
		}
	})
}

// FuzzSetTable gives the proxy tables of any content: they are taken or refused, and picking goes on.
func FuzzSetTable(f *testing.F) {
	good, err := json.Marshal(Table{Version: 1, Apps: []App{{
		ID: "a", Services: []Service{{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")}, InternalPort: 80, Soft: 1, Hard: 2}},
		Machines: []Machine{{ID: "m", Phase: PhaseServing, Addr: netip.MustParseAddr("127.0.0.1"), Failing: []uint16{80}}, {ID: "n", Phase: PhaseStopped}},
	}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, good)
	f.Add(good, []byte(`{"version":2,"apps":[]}`))
	f.Add([]byte(`{"apps":[{"id":"a","services":[{"internal_port":1,"hard":-1}]}]}`), []byte(`{"apps":[{"id":""}]}`))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		p, err := New(Config{Recent: 1})
		if err != nil {
			t.Fatal(err)
		}
		var seats []seat
		for _, b := range [][]byte{first, second} {
			var table Table
			if json.Unmarshal(b, &table) != nil {
				return
			}
			if p.SetTable(context.Background(), table) != nil {
				continue
			}
			for _, r := range *p.routes.Load() {
				w := &waiter{svc: r.svc, region: r.region, deliver: func(v verdict) {
					if v.seat.place != nil {
						seats = append(seats, v.seat)
					}
				}}
				if v := r.app.enter(w); v.seat.place != nil {
					if v.seat.place.used > v.seat.place.hard {
						t.Fatalf("%d slots of %d", v.seat.place.used, v.seat.place.hard)
					}
					seats = append(seats, v.seat)
				}
			}
		}
		for i := 0; i < len(seats); i++ { // grows: a slot that is given back goes to the next
			seats[i].place.svc.app.release(seats[i])
		}
		for _, a := range p.allApps() {
			if a.held != 0 {
				t.Fatalf("%d slots held after all were given back", a.held)
			}
			a.leave()
		}
	})
}

func TestErrorsKeepTheirKindOverTheSocket(t *testing.T) {
	want := volant.Errorf(volant.ErrConflict, "older").WithRemedy("try again")
	got := volant.ToWire(want).Err()
	if !errors.Is(got, volant.ErrConflict) || got.Error() != want.Error() {
		t.Errorf("got %v, want %v", got, want)
	}
}
