package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/volanttest/planet"
)

// labAPI is the API of a lab's node.
func labAPI(t *testing.T, p *planet.Planet, name string) *client.Client {
	t.Helper()
	n, err := p.Named(name)
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.API()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// untilNil asks until it is as it should be.
func untilNil(t *testing.T, what string, within time.Duration, ok func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		err := ok(ctx)
		if err == nil {
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// seats waits until the nodes are to the store as they should be, by name; "" is nothing.
func seats(t *testing.T, c *client.Client, want map[string]string) {
	t.Helper()
	untilNil(t, fmt.Sprintf("the store's members are %v", want), time.Minute, func(ctx context.Context) error {
		ns, err := c.Nodes(ctx)
		if err != nil {
			return err
		}
		got := map[string]string{}
		for _, n := range ns {
			got[n.Name] = n.Control
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			return fmt.Errorf("they are %v", got)
		}
		return nil
	})
}

// TestLabControlGrowsAndLosesOne grows the control nodes from one to three, has the first of all die, removes it while it
// is dead, and sees it stop by itself when it comes back; then the control nodes shrink to one. The intent can be
// written all the time but for the election, and clients are served.
func TestLabControlGrowsAndLosesOne(t *testing.T) {
	p := inLab(t, lab.Config{Regions: []string{"dfw", "ord", "ams"}})
	ctx := t.Context()
	addr := labDeploy(t, p, "grown", "min = 0")
	answersFrom(t, p, "ams", 1, addr)
	ord := labAPI(t, p, "ord-1")
	for _, name := range []string{"ord-1", "ams-1"} {
		if _, err := ord.ChangeNode(ctx, name, "promote"); err != nil {
			t.Fatal(err)
		}
	}
	seats(t, ord, map[string]string{"dfw-1": "member", "ord-1": "member", "ams-1": "member"})

	if err := p.Kill(ctx, "dfw-1"); err != nil {
		t.Fatal(err)
	}
	untilNil(t, "two of three control nodes write the intent", 30*time.Second, func(ctx context.Context) error {
		_, err := ord.CreateApp(ctx, "written-by-two", "")
		return err
	})
	answersFrom(t, p, "ams", 2, addr)
	untilNil(t, "the dead node is removed without force", time.Minute, func(ctx context.Context) error {
		_, err := ord.RemoveNode(ctx, "dfw-1", false)
		return err
	})
	seats(t, ord, map[string]string{"ord-1": "member", "ams-1": "member"})

	back, err := p.Named("dfw-1")
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Start(ctx, "dfw-1") // it may end before the lab has seen it start
	untilNil(t, "the removed node ends and says why", time.Minute, func(context.Context) error {
		if !strings.Contains(back.Log(), "was removed from its cluster") {
			return fmt.Errorf("its log does not say so")
		}
		return nil
	})
	if err := p.Start(ctx, "dfw-1"); err == nil {
		t.Error("the removed node starts again")
	}
	answersFrom(t, p, "ams", 3, addr)

	if _, err := ord.ChangeNode(ctx, "ams-1", "demote"); err != nil {
		t.Fatal(err)
	}
	seats(t, ord, map[string]string{"ord-1": "member", "ams-1": ""})
	untilNil(t, "one control node writes the intent, asked by the other", 30*time.Second, func(ctx context.Context) error {
		_, err := labAPI(t, p, "ams-1").CreateApp(ctx, "written-by-one", "")
		return err
	})
	if _, err := ord.ChangeNode(ctx, "ord-1", "demote"); err == nil {
		t.Error("the only control node is demoted")
	}
	if _, err := ord.CreateJoinToken(ctx, api.CreateJoinToken{}); err != nil {
		t.Errorf("a join token of the cluster without its first server: %v", err)
	}
}
