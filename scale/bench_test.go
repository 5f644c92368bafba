package scale_test

import (
	"fmt"
	"testing"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/scale"
)

func BenchmarkPlan(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			o := look(entering("ams", 15*n), settings(func(s *volant.Scale) { s.Max = 1000 }))
			for i := range n {
				machine(volant.MachineID(fmt.Sprintf("m%04d", i)), scale.Serving, 15)(&o)
			}
			b.ReportAllocs()
			for b.Loop() {
				scale.Plan(o)
			}
		})
	}
}
