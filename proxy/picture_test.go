package proxy_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/proxy"
)

func TestPictureTellsOfEveryConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.app.MaxQueue = 1
		w.boot(1)
		w.set(machineIn(1, 1, proxy.PhaseServing))
		place := proxy.PlacePicture{Machine: machineID(1), Port: 8080, Hard: 3}
		want := func(when string, want proxy.Picture) {
			t.Helper()
			got, err := w.p.Picture(t.Context(), "app_1")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", when, diff)
			}
		}
		want("before the machine accepted anything", proxy.Picture{Places: []proxy.PlacePicture{place}, Refused: map[string]uint64{}})
		for range 5 {
			w.dial()
			synctest.Wait()
		}
		place.Used, place.Ready = 3, true
		want("three of five served, one waits, one is refused", proxy.Picture{
			Waiting: 1, Served: 3, Places: []proxy.PlacePicture{place}, Refused: map[string]uint64{"queue_full": 1},
		})
		time.Sleep(31 * time.Second)
		synctest.Wait()
		want("after the queue's time", proxy.Picture{
			Served: 3, Places: []proxy.PlacePicture{place}, Refused: map[string]uint64{"queue_full": 1, "queue_timeout": 1},
		})
		if _, err := w.p.Picture(t.Context(), "app_2"); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("an app that is not there: %v", err)
		}
	})
}

func TestPictureOverTheSocket(t *testing.T) {
	p := newProcess(t)
	front, app := freeAddr(t), echoServer(t)
	c, _ := p.ensure()
	if err := c.SetTable(t.Context(), tableOf(1, front, app)); err != nil {
		t.Fatal(err)
	}
	dialSoon(t, front)
	for {
		pic, err := c.Picture(t.Context(), "app_1")
		if err != nil {
			t.Fatal(err)
		}
		if pic.Served == 1 && len(pic.Places) == 1 && pic.Places[0].Ready {
			return
		}
	}
}
