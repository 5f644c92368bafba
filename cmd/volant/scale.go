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
	var app string
	cmd.PersistentFlags().StringVarP(&app, "app", "a", "", "the app")
	show := &cobra.Command{
		Use: "show [APP]", Short: "Show an app's scale settings and counts", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appArg(app, args)
			if err != nil {
				return err
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			s, err := c.Scale(cmd.Context(), name)
			if err != nil {
				return err
			}
			return g.print(cmd, s, func(w io.Writer) { scaleText(w, s) })
		},
	}
	cmd.AddCommand(show, newScaleSet(g, &app))
	return cmd
}

func newScaleSet(g *globals, app *string) *cobra.Command {
	var low, high, queue, perClient int
	var idle, keep, queueTime time.Duration
	var onIdle string
	cmd := &cobra.Command{
		Use: "set [APP]", Short: "Change an app's scale settings; what is not named stays", Args: cobra.MaximumNArgs(1),
		Example: "  volant scale set --app web --min 1 --max 20 --idle-timeout 5m",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := appArg(*app, args)
			if err != nil {
				return err
			}
			var p api.ScalePatch
			changed := 0
			named := func(flag string, set func()) {
				if cmd.Flags().Changed(flag) {
					set()
					changed++
				}
			}
			named("min", func() { p.Min = &low })
			named("max", func() { p.Max = &high })
			named("max-queue", func() { p.MaxQueue = &queue })
			named("max-per-client", func() { p.MaxPerPeer = &perClient })
			named("on-idle", func() { p.OnIdle = &onIdle })
			named("idle-timeout", func() { d := volant.Duration(idle); p.IdleTimeout = &d })
			named("keep", func() { d := volant.Duration(keep); p.Keep = &d })
			named("queue-timeout", func() { d := volant.Duration(queueTime); p.QueueTime = &d })
			if changed == 0 {
				return fmt.Errorf("nothing to set: name a setting, such as --min 1; see `volant scale set --help`")
			}
			c, err := g.client()
			if err != nil {
				return err
			}
			s, err := c.SetScale(cmd.Context(), name, p)
			if err != nil {
				return err
			}
			return g.print(cmd, s, func(w io.Writer) { scaleText(w, s) })
		},
	}
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
