package main

import (
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/spf13/cobra"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func newScale(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "scale", Short: "Show and set how an app's machines come and go"}
	show := g.askApp("show [APP]", "Show an app's scale settings and counts", func(c *call, app string) error {
		s, err := c.Scale(c.ctx, app)
		if err != nil {
			return err
		}
		return c.say(s, func(w io.Writer) { scaleText(w, s) })
	})
	cmd.AddCommand(show, newScaleSet(g))
	return cmd
}

func newScaleSet(g *globals) *cobra.Command {
	var low, high, queue, perClient int
	var idle, keep, queueTime time.Duration
	var onIdle string
	cmd := g.askApp("set [APP]", "Change an app's scale settings; what is not named stays", func(c *call, app string) error {
		var p api.ScalePatch
		changed := 0
		named := func(flag string, set func()) {
			if c.cmd.Flags().Changed(flag) {
				set()
				changed++
			}
		}
		named("min", func() { p.Min = &low })
		named("max", func() { p.Max = &high })
		named("max-queue", func() { p.MaxQueue = &queue })
		named("max-per-client", func() { p.MaxPerPeer = &perClient })
		named("on-idle", func() { p.OnIdle = &onIdle })
		named("idle-timeout", func() { p.IdleTimeout = new(volant.Duration(idle)) })
		named("keep", func() { p.Keep = new(volant.Duration(keep)) })
		named("queue-timeout", func() { p.QueueTime = new(volant.Duration(queueTime)) })
		if changed == 0 {
			return volant.Invalidf("nothing to set").WithRemedy("name a setting, such as --min 1; see `volant scale set --help`")
		}
		s, err := c.SetScale(c.ctx, app, p)
		if err != nil {
			return err
		}
		return c.say(s, func(w io.Writer) { scaleText(w, s) })
	})
	cmd.Example = "  volant scale set --app web --min 1 --max 20 --idle-timeout 5m"
	f := cmd.Flags()
	f.IntVar(&low, "min", 0, "machines kept awake, 0 or more")
	f.IntVar(&high, "max", 10, "machines in all, 1 to 1000")
	f.IntVar(&queue, "max-queue", 1024, "connections that may wait for a machine, per edge")
	f.IntVar(&perClient, "max-per-client", 64, "of them per client /32 or /56")
	f.DurationVar(&idle, "idle-timeout", time.Minute, "calm before machines fall asleep, 1s or more")
	f.DurationVar(&keep, "keep", time.Hour, "sleep beyond min before a machine made by scaling is destroyed")
	f.DurationVar(&queueTime, "queue-timeout", 30*time.Second, "the longest a connection waits, at most 10m")
	f.StringVar(&onIdle, "on-idle", "suspend", "what an idle machine does: suspend, stop or off")
	return cmd
}

func scaleText(w io.Writer, s api.Scale) {
	v := s.Scale
	table(w, [][]string{
		{"min", fmt.Sprint(v.Min)},
		{"max", fmt.Sprint(v.Max)},
		{"idle_timeout", v.IdleTimeout.String()},
		{"on_idle", v.OnIdle},
		{"keep", v.Keep.String()},
		{"max_queue", fmt.Sprint(v.MaxQueue)},
		{"max_per_client", fmt.Sprint(v.MaxPerPeer)},
		{"queue_timeout", v.QueueTime.String()},
		{"drain_timeout", v.DrainAfter.String()},
		{"wakes", fmt.Sprint(!v.NoWake)},
		{"region min", regionMap(v.RegionMin)},
		{"region max", regionMap(v.RegionMax)},
		{"now", fmt.Sprintf("%d awake of %d, %d connections, %d waiting", s.Awake, s.Total, s.Slots, s.Queued)},
	})
}

func regionMap(m map[volant.Region]int) string {
	if len(m) == 0 {
		return "-"
	}
	var names []string
	for r, n := range m {
		names = append(names, fmt.Sprintf("%s=%d", r, n))
	}
	sort.Strings(names)
	return fmt.Sprint(names)
}
