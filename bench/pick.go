package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/volant-edge/volant/bench/stat"
)

// picks times the choice of a machine for one connection by the package's own benchmark, in its dearest case: machines
// under all loads in bands of all distances.
func picks(ctx context.Context, b *bench) ([]Row, error) {
	args := []string{
		"test", "./proxy", "-run", "^$", "-bench", "^BenchmarkPick1000$/^random$", "-benchmem",
		"-benchtime", "200ms", "-count", fmt.Sprint(b.size(10, 2)),
	}
	out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("go test -bench: %w\n%s", err, out)
	}
	var took []float64
	allocs := 0.0
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		var name string
		var n, bytes, objects int
		var ns float64
		line := strings.Join(strings.Fields(sc.Text()), " ")
		if got, _ := fmt.Sscanf(line, "%s %d %f ns/op %d B/op %d allocs/op", &name, &n, &ns, &bytes, &objects); got == 5 {
			took = append(took, ns/1000)
			allocs = max(allocs, float64(objects))
		}
	}
	if len(took) == 0 {
		return nil, fmt.Errorf("go test -bench printed no result:\n%s", out)
	}
	return []Row{
		Row{Name: "pick", Value: stat.Median(took), Unit: "us", Spread: stat.Spread(took, "%.2f"), Note: "1,000 machines of an app in 30 regions"}.atMost(2),
		Row{Name: "pick_allocs", Value: allocs, Unit: "allocations"}.exactly(0),
	}, nil
}
